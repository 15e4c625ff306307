package holdfast

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Severity is how bad a finding is.
type Severity string

// The severities.
const (
	SeverityInfo     Severity = "info"
	SeverityWarning  Severity = "warning"
	SeverityCritical Severity = "critical"
)

// Health is the worst of an item's findings. It never changes the item's state.
type Health string

// The levels of health.
const (
	HealthHealthy       Health = "healthy"
	HealthWarning       Health = "warning"
	HealthCritical      Health = "critical"
	HealthNotApplicable Health = "not_applicable" // does not replicate in its state
)

// Code names what is wrong, for machines and for people who look it up. The
// meaning of a code never changes and no code is used twice.
type Code string

// The codes of findings.
const (
	CodeRPOExceeded        Code = "HF1001"
	CodeNoRecoveryPoint    Code = "HF1002"
	CodeResyncRunning      Code = "HF1003"
	CodeNeverTested        Code = "HF1004"
	CodeTestOverdue        Code = "HF1005"
	CodeTestLeftOpen       Code = "HF1006"
	CodeGatewayUnreachable Code = "HF1101"
	CodeGatewayCutOff      Code = "HF1102"
	CodeBandwidthLimited   Code = "HF1103"
	CodeVaultFull          Code = "HF1201"
	CodeVaultUnreachable   Code = "HF1202"
	CodeVaultDamaged       Code = "HF1203"
	CodeChangeLost         Code = "HF1204"
	CodeSourceOff          Code = "HF1301"
	CodeSourceUnreachable  Code = "HF1302"
	CodeDiskResized        Code = "HF1303"
	CodeDisksChanged       Code = "HF1304"
	CodePaused             Code = "HF1305"
	CodeClockSetBack       Code = "HF1401"
	CodeViewNeeded         Code = "HF1501"
	CodeTwoLiveCopies      Code = "HF1502"
	CodeNotGuarded         Code = "HF1503"
	CodeMachineGone        Code = "HF1504"
	CodeAddressesLeft      Code = "HF1505"
	CodeAppPointFailed     Code = "HF1601"
	CodePlanItemGone       Code = "HF1701"
	CodeDrillFailed        Code = "HF1702"
)

// Finding is one thing about an item that is not as it should be, with its
// cause and what to do about it.
type Finding struct {
	Code     Code      `json:"code"`
	Name     string    `json:"name"` // the code in words, like rpo_exceeded
	Severity Severity  `json:"severity"`
	Summary  string    `json:"summary"`
	Cause    string    `json:"cause"`
	Advice   string    `json:"advice"`
	Detail   string    `json:"detail,omitempty"` // what is known of this occurrence
	Since    time.Time `json:"since,omitzero"`
}

// Findings returns one finding of each code, without detail and time: the
// table of what there is.
func Findings() []Finding {
	f := func(code Code, name string, s Severity, summary, cause, advice string) Finding {
		return Finding{Code: code, Name: name, Severity: s, Summary: summary, Cause: cause, Advice: advice}
	}
	return []Finding{
		f(CodeRPOExceeded, "rpo_exceeded", SeverityWarning, "The RPO is above the policy's threshold",
			"The way to the vault is slower than the machine writes, or something on it stands still",
			"Look at the item's mode and backlog: with a backlog, give replication more bandwidth or the policy a higher threshold; otherwise see the other findings"),
		f(CodeNoRecoveryPoint, "no_recovery_point", SeverityCritical, "The item has no recovery point",
			"The vault holds no moment of this item that is consistent",
			"Wait for the initial replication or resync to finish; if it does not move, see the other findings"),
		f(CodeResyncRunning, "resync_running", SeverityInfo, "A resync is running",
			"Writes could not be sent for a time, so blocks that changed meanwhile are compared and sent",
			"Nothing is to be done; earlier recovery points can be used, new ones come when it has finished"),
		f(CodeNeverTested, "never_tested", SeverityInfo, "No test failover was ever run",
			"Nobody has yet seen this machine run at the recovery site",
			"Run a test failover and clean it up"),
		f(CodeTestOverdue, "test_overdue", SeverityInfo, "The last test failover is long ago",
			"The policy wants one more often",
			"Run a test failover and clean it up"),
		f(CodeTestLeftOpen, "test_left_open", SeverityWarning, "A test failover was left open",
			"Nobody has cleaned it up; the test machine uses resources of the recovery site",
			"Clean the test failover up; it does not stand in the way of anything else"),
		f(CodeGatewayUnreachable, "gateway_unreachable", SeverityCritical, "The gateway does not answer",
			"It does not run, or the network between it and the server does not carry",
			"Start the gateway and check the network; replication goes on by itself, and only what changed is sent again"),
		f(CodeGatewayCutOff, "gateway_stalled_and_cut", SeverityWarning, "The gateway was cut off so that the machine did not have to wait for it",
			"Its spool is full, because the way to the vault is slower than the machine writes, or the vault takes nothing",
			"Look at the way to the vault, and at the gateway's processor, memory and spool; replication goes on by itself with what changed"),
		f(CodeBandwidthLimited, "bandwidth_limited", SeverityInfo, "Replication waits for its bandwidth",
			"The gateway was told to send no more than this to the vault, and the machine writes more",
			"Nothing is to be done while the RPO is as you want it: the backlog is sent when the limit allows. Otherwise raise the gateway's --bandwidth, or give it more --spool-limit for long hours"),
		f(CodeVaultFull, "vault_full", SeverityCritical, "The vault is full",
			"The storage behind it has no space left",
			"Make space or enlarge the storage; the machine works on, and replication goes on by itself"),
		f(CodeVaultUnreachable, "vault_unreachable", SeverityCritical, "The vault cannot be reached",
			"Its directory is missing or read-only, or the network or credentials of its store do not work",
			"Restore access to the vault; the machine works on, and replication goes on by itself"),
		f(CodeVaultDamaged, "vault_damaged", SeverityCritical, "Data in the vault is damaged",
			"Something changed or lost objects after they were written",
			"Run holdfast vault verify: it names the recovery points that are touched, and puts back what the vault's copy has. Without a copy recover to an earlier point, then resync"),
		f(CodeChangeLost, "change_lost", SeverityCritical, "The vault had not all that the machine has on its disks",
			"A change did not go by the way on which replication sees it: somebody wrote to the disk beside the machine, or Holdfast or QEMU has an error",
			"The disk was compared as a whole and what differed was sent: points from now on are right, older ones may lack the change. Find out who wrote to the disk; if nobody did, report it. Run holdfast item compare: the finding goes when a whole comparison has found nothing"),
		f(CodeSourceOff, "source_off", SeverityInfo, "The machine is off",
			"Somebody shut it down; nothing is written, so nothing is lost",
			"Nothing is to be done; replication goes on when the machine is started"),
		f(CodeSourceUnreachable, "source_unreachable", SeverityCritical, "The machine or its host cannot be reached",
			"The host is down, or the network to it does not carry",
			"Look at the host; if it is lost, fail over"),
		f(CodeDiskResized, "disk_resized", SeverityWarning, "A disk of the machine has another size than when it was protected",
			"Somebody resized it",
			"Nothing is to be done: the new size is taken over, and what differs is sent; until then its recovery points are those from before. If this stays, see the detail"),
		f(CodeDisksChanged, "disks_changed", SeverityWarning, "The machine has other disks than those that are replicated",
			"Somebody added, removed or resized a disk",
			"Nothing is to be done: within a minute the disks are taken over; recovery points from before keep the disks of then. If this stays, see the detail. Before a failback, give the machine at home a disk of the name of each that was added"),
		f(CodePaused, "replication_paused", SeverityWarning, "Replication is paused",
			"Somebody asked for that, so that the machine's disks can be resized, backed up or snapshotted by others",
			"It goes on by itself at the time that was set, or with holdfast item resume; what was written meanwhile is then sent"),
		f(CodeClockSetBack, "clock_set_back", SeverityWarning, "The clock was set back",
			"The time of the server or the gateway is earlier than that of what is already in the vault",
			"Let the machines keep time by NTP; order in the vault does not depend on the clock, but times shown for recovery points do"),
		f(CodeViewNeeded, "view_needed", SeverityWarning, "The recovered machine still reads from the vault",
			"Not all of its disks is local yet",
			"Keep vault and server running until hydration has finished; holdfast item show tells how far it is"),
		f(CodeTwoLiveCopies, "two_live_copies", SeverityCritical, "The machine runs at both sites",
			"Somebody or something started the copy that was left behind by a failover; what it writes is not replicated",
			"Switch the copy off that does not count: the one at the site that holdfast item show does not name as active"),
		f(CodeNotGuarded, "not_guarded", SeverityWarning, "The copy that was left behind could not be guarded against being started",
			"Its site cannot be reached, or refuses, or its provider cannot guard machines",
			"Make sure that nobody starts it there; it is guarded by itself as soon as its site can be reached"),
		f(CodeMachineGone, "machine_gone", SeverityCritical, "The recovered machine is gone",
			"Somebody removed it, or its site has lost it; it cannot be reprotected or failed back",
			"Until it is committed, change the recovery point: that makes it anew. Afterwards, disable protection, and protect what there is"),
		f(CodeAddressesLeft, "addresses_left", SeverityWarning, "The machine is home, and its guest may still have the addresses of the other site",
			"Its guest agent did not answer, or could not take them back",
			"Start the guest agent: they are taken back within a minute; or look at the guest's network yourself, where what was added is called holdfast"),
		f(CodeAppPointFailed, "app_point_failed", SeverityWarning, "The last application-consistent recovery point could not be made",
			"The guest agent does not answer, or did not freeze the file systems in time; a crash-consistent point was made in its place",
			"Look whether the guest agent runs in the machine, and at its freeze hooks"),
		f(CodePlanItemGone, "plan_item_gone", SeverityCritical, "A recovery plan names an item that there is not",
			"Its protection was disabled, or the name is misspelt; the plan would not bring that machine up",
			"Protect that machine again, or take it out of the plan"),
		f(CodeDrillFailed, "drill_failed", SeverityWarning, "The last drill of a recovery plan did not succeed",
			"Some of its machines did not come up, or an action failed",
			"See the run with holdfast plan result, put right what failed, and repeat it with holdfast plan drill"),
	}
}

// NewFinding returns the finding of a code with what is known of this
// occurrence. An unknown code is returned as a critical finding that says so.
func NewFinding(code Code, detail string, since time.Time) Finding {
	for _, f := range Findings() {
		if f.Code == code {
			f.Detail, f.Since = detail, since
			return f
		}
	}
	return Finding{Code: code, Name: "unknown", Severity: SeverityCritical, Summary: "Unknown finding", Detail: detail, Since: since,
		Cause: "It was written by another version of Holdfast", Advice: "Look it up in that version's documentation"}
}

// Health returns the item's level: the worst severity among Status.Findings,
// where infos do not count. A failed-over item that does not replicate has no
// health of replication, unless something is critical or warned of.
func (it Item) Health() Health {
	level := HealthHealthy
	if failedOver(it.State) || it.State == StateUnprotected || it.State == StateDisabling {
		level = HealthNotApplicable
	}
	for _, f := range it.Status.Findings {
		switch f.Severity {
		case SeverityCritical:
			return HealthCritical
		case SeverityWarning:
			level = HealthWarning
		}
	}
	return level
}

// testOpenFor is how long a test failover may stay open before that is a finding.
const testOpenFor = 24 * time.Hour

// Observation is what was seen of an item, from which Assess derives findings.
// Each string is the detail of the trouble it is named for; empty if there is
// none of that kind.
type Observation struct {
	GatewayUnreachable string
	GatewayCutOff      string
	BandwidthLimited   string
	VaultFull          string
	VaultUnreachable   string
	VaultDamaged       string
	ChangeLost         string
	SourceUnreachable  string
	SourceOff          bool
	DiskResized        string
	DisksChanged       string
	Paused             string
	ClockSetBack       time.Duration // by how much; 0: not
	NeedsView          bool
	TwoLiveCopies      string
	NotGuarded         string
	MachineGone        string
	AppPointFailed     string
}

// Assess returns the findings of an item, worst first, from what was observed,
// from Status (mode, newest point, RPO) and from its policy. A finding that
// Status.Findings has already keeps its Since.
func (it Item) Assess(o Observation, now time.Time) []Finding {
	var found []Finding
	add := func(when bool, code Code, format string, args ...any) {
		if !when {
			return
		}
		since := now
		for _, old := range it.Status.Findings {
			if old.Code == code && !old.Since.IsZero() {
				since = old.Since
			}
		}
		found = append(found, NewFinding(code, fmt.Sprintf(format, args...), since))
	}
	policy := it.Policy.WithDefaults()
	replicates := it.State == StateProtected || it.State == StateReplicationBroken
	none := it.Status.Newest == nil
	rpo := it.Status.RPO
	add(replicates && none, CodeNoRecoveryPoint, "")
	// A machine that is off writes nothing: its newest point stays as good as
	// new, however old it grows.
	add(replicates && !none && !o.SourceOff && rpo > policy.RPOThreshold, CodeRPOExceeded,
		"the RPO is %s, the threshold %s", rpo.Round(time.Second), policy.RPOThreshold)
	add(it.Status.Mode == ModeRescan, CodeResyncRunning, "")
	var tested time.Time
	if it.LastTest != nil {
		tested = it.LastTest.Success
	}
	quiet := it.State == StateProtected && it.dir() == Forward && len(it.Tests) == 0
	for _, t := range it.Tests {
		add(now.Sub(t.StartedAt) > testOpenFor, CodeTestLeftOpen, "%s, since %s", t.Name, t.StartedAt.UTC().Format(time.DateTime))
	}
	add(quiet && tested.IsZero(), CodeNeverTested, "")
	add(quiet && !tested.IsZero() && policy.TestEvery != Never && now.Sub(tested) > policy.TestEvery, CodeTestOverdue,
		"the last one was on %s", tested.UTC().Format(time.DateOnly))
	add(o.GatewayUnreachable != "", CodeGatewayUnreachable, "%s", o.GatewayUnreachable)
	add(o.GatewayCutOff != "", CodeGatewayCutOff, "%s", o.GatewayCutOff)
	add(o.BandwidthLimited != "", CodeBandwidthLimited, "%s", o.BandwidthLimited)
	add(o.VaultFull != "", CodeVaultFull, "%s", o.VaultFull)
	add(o.VaultUnreachable != "", CodeVaultUnreachable, "%s", o.VaultUnreachable)
	add(o.VaultDamaged != "", CodeVaultDamaged, "%s", o.VaultDamaged)
	add(o.ChangeLost != "", CodeChangeLost, "%s", o.ChangeLost)
	add(o.SourceUnreachable != "", CodeSourceUnreachable, "%s", o.SourceUnreachable)
	add(o.SourceOff, CodeSourceOff, "")
	add(o.DiskResized != "", CodeDiskResized, "%s", o.DiskResized)
	add(o.DisksChanged != "" && o.DiskResized == "", CodeDisksChanged, "%s", o.DisksChanged)
	add(o.Paused != "", CodePaused, "%s", o.Paused)
	add(o.ClockSetBack > 0, CodeClockSetBack, "by %s", o.ClockSetBack.Round(time.Millisecond))
	add(o.NeedsView, CodeViewNeeded, "")
	add(o.TwoLiveCopies != "", CodeTwoLiveCopies, "%s", o.TwoLiveCopies)
	add(o.NotGuarded != "", CodeNotGuarded, "%s", o.NotGuarded)
	add(o.MachineGone != "", CodeMachineGone, "%s", o.MachineGone)
	add(it.AddressesLeft() && it.CurrentJob == "", CodeAddressesLeft, "%d cards", len(it.Addressing.NICs))
	add(o.AppPointFailed != "", CodeAppPointFailed, "%s", o.AppPointFailed)
	rank := map[Severity]int{SeverityCritical: 0, SeverityWarning: 1, SeverityInfo: 2}
	slices.SortStableFunc(found, func(a, b Finding) int {
		if rank[a.Severity] != rank[b.Severity] {
			return rank[a.Severity] - rank[b.Severity]
		}
		return strings.Compare(string(a.Code), string(b.Code))
	})
	return found
}
