package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"time"

	"github.com/spf13/cobra"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/block"
	"github.com/holdfast-dr/holdfast/internal/vault"
)

// offline are the flags of what works with a vault and its key alone.
type offline struct {
	vault location
	key   string
	words bool // ask for the recovery key instead
	in    io.Reader
	ask   io.Writer
}

// offlineCommands are the commands of `holdfast vault` that need no server.
func offlineCommands() *cobra.Command {
	group := &cobra.Command{Use: "vault"}
	group.AddCommand(openCommand(), exportCommand(), filesCommand(), serveCommand(), recoveryKeyCommand(), rotateKeyCommand(), copyCommand(), healCommand())
	return group
}

func (o *offline) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.vault.at, "vault", "", "the vault: a directory, s3://BUCKET/PREFIX?endpoint=URL&region=REGION or azure://ACCOUNT/CONTAINER/PREFIX")
	cmd.Flags().StringVar(&o.vault.credentials, "vault-credentials", "", "file with the object store's credentials, as lines NAME=VALUE (default: the environment)")
	cmd.Flags().StringVar(&o.key, "vault-key", "", "file with the vault's key")
	cmd.Flags().BoolVar(&o.words, "recovery-key", false, "ask for the words of the recovery key, instead of --vault-key")
	_ = cmd.MarkFlagRequired("vault") // the flag is there
	cmd.MarkFlagsOneRequired("vault-key", "recovery-key")
	cmd.MarkFlagsMutuallyExclusive("vault-key", "recovery-key")
	cmd.PreRun = func(cmd *cobra.Command, _ []string) { o.in, o.ask = cmd.InOrStdin(), cmd.ErrOrStderr() }
}

// open opens the vault for reading.
func (o *offline) open(ctx context.Context) (*vault.Vault, error) {
	v, _, err := o.openWith(ctx)
	return v, err
}

func (o *offline) readKey() (vault.Key, error) {
	if o.words {
		return askWords(o.in, o.ask)
	}
	key, err := readKey(o.key)
	if err != nil {
		return key, startError("read vault key", o.key, err, "Name the file with the vault's key with --vault-key: vault.key in the server's state directory, or your copy of it; or use --recovery-key")
	}
	return key, nil
}

// openWith opens the vault, and returns the key that did it.
func (o *offline) openWith(ctx context.Context) (*vault.Vault, vault.Key, error) {
	key, err := o.readKey()
	if err != nil {
		return nil, key, err
	}
	if err := o.vault.absolute(); err != nil {
		return nil, key, err
	}
	v, err := o.openKey(ctx, key)
	return v, key, err
}

func (o *offline) openKey(ctx context.Context, key vault.Key) (*vault.Vault, error) {
	objects, err := o.vault.open(ctx)
	if err != nil {
		return nil, err
	}
	v, err := vault.Open(ctx, objects, key, vault.Options{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, startError("open vault", o.vault.name(), err, vaultHint(err, serverOptions{vault: o.vault, keyFile: o.key}, "that you mean"))
	}
	return v, nil
}

// stream finds a stream by its id or its name, and reads what there is of it.
func (o *offline) stream(ctx context.Context, v *vault.Vault, wanted string) (*vault.Stream, error) {
	ids, err := v.Streams(ctx)
	if err != nil {
		return nil, err
	}
	var found *vault.Stream
	var names []string
	for _, id := range ids {
		s, err := v.OpenStream(ctx, id)
		if err != nil {
			return nil, err
		}
		names = append(names, s.Name())
		if id.String() != wanted && s.Name() != wanted {
			continue
		}
		if found != nil {
			return nil, &holdfast.Error{Kind: holdfast.KindInvalid, Op: "find stream", Thing: wanted, Cause: "several have this name", Hint: "Give the id, of holdfast vault open"}
		}
		found = s
	}
	if found == nil {
		return nil, &holdfast.Error{Kind: holdfast.KindNotFound, Op: "find stream", Thing: wanted, Cause: "the vault has no such stream", Hint: fmt.Sprintf("It has %q; see holdfast vault open", names)}
	}
	if err := found.Refresh(ctx); err != nil && !errors.Is(err, vault.ErrCorrupt) { // what lies before damage can be had
		return nil, err
	}
	return found, nil
}

// openCommand is `holdfast vault open`.
func openCommand() *cobra.Command {
	var o offline
	cmd := &cobra.Command{
		Use: "open", Args: cobra.NoArgs,
		Short: "List what a vault has, with its key and without a server",
		Long: `List what a vault has, with its key and without a server: the way in when the server is lost. What it
lists, holdfast vault export writes to image files.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v, err := o.open(cmd.Context())
			if err != nil {
				return err
			}
			return o.list(cmd.Context(), v, cmd.OutOrStdout())
		},
	}
	o.flags(cmd)
	return cmd
}

func (o *offline) list(ctx context.Context, v *vault.Vault, out io.Writer) error {
	ids, err := v.Streams(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "vault %s\n", v.ID())
	for _, id := range ids {
		s, err := o.stream(ctx, v, id.String())
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "\n%s, stream %s\n", s.Name(), id)
		for _, tl := range s.Timelines() {
			fmt.Fprintf(out, "  timeline %d", uint32(tl.ID))
			for _, d := range s.Disks(tl.ID) {
				fmt.Fprintf(out, ", %s of %d bytes", d.ID, d.Size)
			}
			fmt.Fprintln(out)
			for _, r := range s.Ranges(tl.ID) {
				fmt.Fprintf(out, "    any moment from %s to %s\n", r.FromTime.UTC().Format(time.RFC3339), r.ToTime.UTC().Format(time.RFC3339))
			}
			for _, p := range s.Points(tl.ID) {
				fmt.Fprintf(out, "    point %s of %s, %s-consistent %s\n", p.ID, p.Time.UTC().Format(time.RFC3339), p.Consistency, p.Name)
			}
		}
	}
	return nil
}

// moments is a moment of a stream, as it was asked for.
type moments struct {
	offline
	stream, point, at string
	timeline          uint32
}

// export is what `holdfast vault export` was asked for.
type export struct {
	moments
	disk, output, format string
}

// formats are the formats of images, as qemu-img calls them.
var formats = map[string][]string{
	"raw": nil, "qcow2": {"-O", "qcow2"}, "vmdk": {"-O", "vmdk", "-o", "subformat=streamOptimized"}, "vhd": {"-O", "vpc", "-o", "subformat=fixed,force_size=on"},
}

// exportCommand is `holdfast vault export`.
func exportCommand() *cobra.Command {
	var o export
	cmd := &cobra.Command{
		Use: "export STREAM", Args: cobra.ExactArgs(1),
		Short: "Write a disk of a recovery point to an image file, without a server",
		Long: `Write a disk of a recovery point to an image file, with the vault's key and without a server. It takes the
newest consistent moment, unless a point or a time is given. The file appears under its name once it is
whole. A raw one that was interrupted is gone on with: what FILE.part has already is not read from the
vault again. All formats but raw need qemu-img.`,
		Example: "  holdfast vault export web1 --vault /srv/vault --vault-key vault.key --disk vda --output web1.qcow2 --format qcow2",
		RunE: func(cmd *cobra.Command, args []string) error {
			o.stream = args[0]
			return o.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	o.flags(cmd)
	f := cmd.Flags()
	f.StringVar(&o.disk, "disk", "", "the disk; not needed if there is only one")
	f.StringVar(&o.output, "output", "", "the image file to make; it must not be there")
	f.StringVar(&o.format, "format", "raw", "raw, qcow2, vmdk (stream-optimised) or vhd (fixed)")
	_ = cmd.MarkFlagRequired("output") // the flag is there
	return cmd
}

func (o *export) run(ctx context.Context, out, progress io.Writer) error {
	options, known := formats[o.format]
	if !known {
		return &holdfast.Error{Kind: holdfast.KindInvalid, Op: "export disk", Cause: fmt.Sprintf("%q is no format", o.format), Hint: "Want raw, qcow2, vmdk or vhd"}
	}
	if _, err := os.Lstat(o.output); err == nil {
		return &holdfast.Error{Kind: holdfast.KindConflict, Op: "export disk to", Thing: o.output, Cause: "there is such a file", Hint: "Give another name, or remove it"}
	}
	view, at, err := o.view(ctx)
	if err != nil {
		return err
	}
	disk, err := o.chosen(view)
	if err != nil {
		return err
	}
	image, err := view.Disk(disk)
	if err != nil {
		return err
	}
	part := o.output + ".part"
	if options == nil {
		err = writeRaw(ctx, part, view, disk, progress)
	} else {
		err = convert(ctx, part, image, options, progress)
	}
	if err == nil {
		err = os.Link(part, o.output) // never over another file
	} else if options == nil {
		return &holdfast.Error{Kind: holdfast.KindUnavailable, Op: "export disk", Thing: disk, Err: err, Hint: "Run the same command again: it goes on with " + part}
	}
	if err = errors.Join(err, os.Remove(part)); err != nil {
		return fmt.Errorf("export disk %s: %w", disk, err)
	}
	fmt.Fprintf(out, "%s is disk %s of %s as it was at %s\n", o.output, disk, o.stream, at.UTC().Format(time.RFC3339))
	return nil
}

func (o *moments) flags(cmd *cobra.Command) {
	o.offline.flags(cmd)
	f := cmd.Flags()
	f.Uint32Var(&o.timeline, "timeline", 0, "the timeline; the newest if not given")
	f.StringVar(&o.point, "point", "", "a point's id or name, or a position")
	f.StringVar(&o.at, "time", "", "the newest consistent moment at or before this, like 2026-11-23T12:00:00Z")
}

// view opens the moment that is meant.
func (o *moments) view(ctx context.Context) (*vault.View, time.Time, error) {
	v, err := o.open(ctx)
	if err != nil {
		return nil, time.Time{}, err
	}
	s, err := o.offline.stream(ctx, v, o.stream)
	if err != nil {
		return nil, time.Time{}, err
	}
	o.stream = s.Name()
	tl, pos, at, err := o.moment(s)
	if err != nil {
		return nil, time.Time{}, err
	}
	view, err := s.View(ctx, tl, pos)
	if err != nil {
		return nil, time.Time{}, startError("open recovery point", pos.String(), err, "Choose an earlier moment, and run holdfast vault verify")
	}
	return view, at, nil
}

// moment finds the position that is meant.
func (o *moments) moment(s *vault.Stream) (holdfast.TimelineID, holdfast.Position, time.Time, error) {
	all := s.Timelines()
	tl := holdfast.TimelineID(o.timeline)
	if tl == 0 {
		tl = all[len(all)-1].ID
	}
	h := holdfast.History{Timeline: tl, Lookup: func(at time.Time) (holdfast.Position, bool) {
		pos, err := s.Resolve(tl, at)
		return pos, err == nil
	}, TimeOf: func(pos holdfast.Position) (time.Time, bool) { return s.TimeOf(tl, pos) }}
	for _, p := range s.Points(tl) {
		h.Points = append(h.Points, holdfast.RecoveryPoint{ID: p.ID, Name: p.Name, Timeline: tl, Position: p.Position, Time: p.Time, Consistency: holdfast.Consistency(p.Consistency)})
	}
	for _, r := range s.Ranges(tl) {
		h.Ranges = append(h.Ranges, holdfast.PointRange{Timeline: tl, From: r.From, To: r.To, FromTime: r.FromTime, ToTime: r.ToTime})
	}
	req := holdfast.PointRequest{Option: holdfast.PointLatest}
	switch {
	case o.point != "" && o.at != "":
		return 0, 0, time.Time{}, &holdfast.Error{Kind: holdfast.KindInvalid, Op: "choose recovery point", Cause: "--point and --time exclude each other"}
	case o.point != "":
		req = holdfast.PointRequest{Option: holdfast.PointChosen, Point: o.point, Timeline: tl}
	case o.at != "":
		at, err := time.Parse(time.RFC3339Nano, o.at)
		if err != nil {
			return 0, 0, time.Time{}, &holdfast.Error{Kind: holdfast.KindInvalid, Op: "choose recovery point", Thing: o.at, Cause: "it is no time", Hint: "Want one with a zone, like 2026-11-23T12:00:00Z"}
		}
		req = holdfast.PointRequest{Option: holdfast.PointTime, Time: at}
	}
	res, err := holdfast.ResolvePoint(req, h)
	return res.Point.Timeline, res.Point.Position, res.Point.Time, err
}

// chosen returns the disk that is meant.
func (o *export) chosen(view *vault.View) (string, error) {
	disks := view.Disks()
	var ids []string
	for _, d := range disks {
		ids = append(ids, d.ID)
	}
	if o.disk == "" && len(ids) == 1 {
		return ids[0], nil
	}
	if !slices.Contains(ids, o.disk) {
		return "", &holdfast.Error{Kind: holdfast.KindInvalid, Op: "choose disk", Thing: o.disk, Cause: fmt.Sprintf("the machine had %q at that moment", ids), Hint: "Name one of them with --disk"}
	}
	return o.disk, nil
}

// writeRaw writes a sparse raw image. Of one that is there already, only what differs
// is read from the vault.
func writeRaw(ctx context.Context, name string, view *vault.View, disk string, progress io.Writer) error {
	image, err := view.Disk(disk)
	if err != nil {
		return err
	}
	options := block.CopyOptions{SkipZero: true, Progress: func(p block.Progress) {
		fmt.Fprintf(progress, "\r%3d %% of %d MiB, %.0f MiB/s, %s left   ", 100*p.Done/max(1, p.Total), p.Total>>20, p.Rate/(1<<20), p.ETA.Round(time.Second))
	}}
	sink, err := block.OpenFileDisk(name, true)
	if err == nil && sink.Size() == image.Size() {
		options.SkipZero = false
		options.Extents, err = view.Differs(ctx, disk, sink, func(done, total int64) {
			fmt.Fprintf(progress, "\r%3d %% of what is there already is looked at", 100*done/max(1, total))
		})
		if err != nil {
			return errors.Join(err, sink.Close())
		}
	} else {
		if err == nil {
			err = sink.Close()
		}
		if err == nil || errors.Is(err, os.ErrNotExist) {
			sink, err = block.CreateFileDisk(name, image.Size())
		}
	}
	if err != nil {
		return err
	}
	_, err = block.Copy(ctx, sink, image, options)
	fmt.Fprintln(progress)
	if err == nil {
		err = sink.Flush(ctx)
	}
	return errors.Join(err, sink.Close())
}

// convert serves the image to qemu-img, which writes it in another format.
func convert(ctx context.Context, name string, image block.Image, options []string, progress io.Writer) error {
	tool, err := exec.LookPath("qemu-img")
	if err != nil {
		return fmt.Errorf("%w: install it (Debian: qemu-utils), or take --format raw", err)
	}
	err = serve(ctx, map[string]block.Image{"disk": image}, "", func(ctx context.Context, socket string) error {
		args := append([]string{"convert", "-p", "-f", "raw"}, options...)
		cmd := exec.CommandContext(ctx, tool, append(args, "nbd+unix:///disk?socket="+socket, name)...)
		cmd.Stdout = progress
		var said boundedText
		cmd.Stderr = &said
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("qemu-img: %w: %s", err, said)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return syncFile(name)
}

// boundedText keeps the beginning of what is written to it.
type boundedText []byte

// Write implements io.Writer.
func (b *boundedText) Write(p []byte) (int, error) {
	*b = append(*b, p[:min(len(p), max(0, 4096-len(*b)))]...)
	return len(p), nil
}

func syncFile(name string) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
