package cli

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-dr/holdfast/api"
)

type failoverOptions struct {
	choosing
	name                    string
	networks                map[string]string
	shutdownSource, planned bool
	addresses               addressing
	operating
}

func (a *app) failover() *cobra.Command {
	var o failoverOptions
	cmd := &cobra.Command{
		Use:   "failover ITEM",
		Short: "Bring an item up at the other site",
		Long: `Bring an item up at the other site, from the newest moment that the vault has or from
the one that is asked for:

  --option latest            first take in all that has arrived (the default)
  --option latest_processed  the newest that is there already: quickest
  --option latest_app        the newest app-consistent point
  --point POINT              a point, see holdfast point list
  --time TIME                the newest moment at or before TIME, which is like
                             2026-11-23T12:00:00Z, or 10m for ten minutes ago

With --planned nothing is lost: the source is shut down, the rest is brought over, source and
vault are compared, and if any of that fails the source is started again. With
--shutdown-source the source is shut down first too, but the failover goes on without it.
In any case a source that can be reached is switched off and guarded before the recovered
machine starts, and one that comes back later within seconds.`,
		Example: "  holdfast failover web1\n  holdfast failover web1 --shutdown-source --name web1-dr\n  holdfast failover web1 --time 2026-11-23T11:58:30Z",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			request, err := o.request(a.Now())
			if err != nil {
				return err
			}
			if request.Addressing, err = o.addresses.request(); err != nil {
				return err
			}
			op := operation{name: "failover", path: "failover", body: request, check: o.check(request),
				question: func(i api.Item) string { return failoverQuestion(i, request) }}
			if o.planned {
				op.name = "planned_failover"
			}
			return a.operate(cmd, args[0], o.operating, op)
		},
	}
	fs := cmd.Flags()
	o.choosing.flags(fs)
	fs.BoolVar(&o.planned, "planned", false, "lose nothing: shut the source down, bring over the rest, compare; stop if that cannot be")
	fs.StringToStringVar(&o.networks, "map-network", nil, "FROM=TO: a network of the other site in the place of one of the source; can be repeated")
	o.addresses.flags(fs)
	fs.BoolVar(&o.shutdownSource, "shutdown-source", false, "shut the source machine down first")
	fs.StringVar(&o.name, "name", "", "the recovered machine's name; the source machine's if not given")
	o.operating.flags(fs)
	return cmd
}

// request returns what the flags ask for.
func (o *failoverOptions) request(now time.Time) (api.Failover, error) {
	f := api.Failover{Option: strings.ReplaceAll(o.option, "-", "_"), Point: o.point, Timeline: o.timeline, ShutdownSource: o.shutdownSource, Planned: o.planned, TargetName: o.name, Networks: o.networks}
	given := 0
	for _, s := range []string{o.option, o.point, o.at} {
		if s != "" {
			given++
		}
	}
	switch {
	case given > 1:
		return f, usagef("--option, --point and --time exclude each other")
	case o.timeline != 0 && o.planned:
		return f, usagef("--planned loses nothing, so it goes with no other timeline than the present one")
	case o.point != "":
		f.Option = api.OptionPoint
	case o.at != "":
		at, err := parseMoment(o.at, now)
		if err != nil {
			return f, err
		}
		f.Option, f.Time = api.OptionTime, at
	case o.option == "":
		f.Option = api.OptionLatest
	}
	switch f.Option {
	case api.OptionLatest, api.OptionLatestProcessed, api.OptionLatestApp:
	case api.OptionPoint, api.OptionTime:
		if o.option != "" {
			return f, usagef("give the %s itself: --%s", f.Option, f.Option)
		}
	default:
		return f, usagef("--option %s is not known: want latest, latest_processed or latest_app", o.option)
	}
	if f.Planned && f.Option != api.OptionLatest {
		return f, usagef("--planned loses nothing, so it goes with no other recovery point than the latest")
	}
	return f, nil
}

// parseMoment reads a time, or a duration as how long ago.
func parseMoment(text string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(strings.TrimSuffix(text, " ago")); err == nil && d >= 0 {
		return now.Add(-d).UTC(), nil
	}
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return time.Time{}, &usageError{message: fmt.Sprintf("--time %s is not a time", text), hint: "Want one with a zone, like 2026-11-23T12:00:00Z or 2026-11-23T13:00:00+01:00, or how long ago, like 10m"}
	}
	return t.UTC(), nil
}

func failoverQuestion(item api.Item, f api.Failover) string {
	to := item.RecoverySite
	if item.ActiveSite == item.RecoverySite {
		to = item.PrimarySite
	}
	from := words(f.Option)
	switch f.Option {
	case api.OptionPoint:
		from = "point " + f.Point
	case api.OptionTime:
		from = moment(f.Time)
	}
	source := "The source machine is switched off, if it can be reached."
	if f.ShutdownSource || f.Planned {
		source = "The source machine is shut down first."
	}
	return plain(fmt.Sprintf("Bring %s up at %s from %s? %s", item.Name, to, from, source))
}
