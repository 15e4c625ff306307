package main

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/vault/segment"
)

// inspected is what can be said of a segment without a key.
type inspected struct {
	File       string              `json:"file"`
	Kind       string              `json:"kind"`
	Stream     holdfast.StreamID   `json:"stream"`
	Timeline   uint32              `json:"timeline"`
	Generation holdfast.Generation `json:"generation"`
	Seq        uint64              `json:"seq"`
	First      holdfast.Position   `json:"first_position"`
	Last       holdfast.Position   `json:"last_position"`
	FirstTime  time.Time           `json:"first_time"`
	LastTime   time.Time           `json:"last_time"`
	Frames     uint32              `json:"frames"`
	RawBytes   int64               `json:"raw_bytes"`
	Bytes      int                 `json:"bytes"`
	Prev       string              `json:"previous_segment"`
	Damage     string              `json:"damage,omitempty"`
}

// inspectCommand is `holdfast inspect`.
func inspectCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "inspect", Short: "Look into files of a vault, without server or key"}
	cmd.AddCommand(&cobra.Command{
		Use: "segment FILE…", Args: cobra.MinimumNArgs(1),
		Short: "Show the header of segments and check their checksums",
		Long: `Show the header of segments, as JSON, and check their checksums. What a segment
holds is encrypted and not shown; holdfast vault verify checks that, too.`,
		RunE: func(cmd *cobra.Command, files []string) error {
			enc := json.NewEncoder(cmd.OutOrStdout())
			enc.SetIndent("", "  ")
			damaged := 0
			for _, name := range files {
				out, err := inspectSegment(name)
				if err != nil {
					return err
				}
				if out.Damage != "" {
					damaged++
				}
				if err := enc.Encode(out); err != nil {
					return err
				}
			}
			if damaged > 0 {
				return fmt.Errorf("%d of %d segments are damaged", damaged, len(files))
			}
			return nil
		},
	})
	return cmd
}

func inspectSegment(name string) (inspected, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return inspected{}, err
	}
	out := inspected{File: name, Bytes: len(b)}
	h, err := segment.CheckSum(b)
	if err != nil {
		out.Damage = err.Error()
		if h, err = segment.ParseHeader(b); err != nil {
			return out, nil
		}
	}
	out.Kind = map[segment.Kind]string{segment.Writes: "writes", segment.End: "end"}[h.Kind]
	out.Stream, out.Timeline, out.Generation, out.Seq = h.Stream, uint32(h.Timeline), h.Generation, h.Seq
	out.First, out.Last, out.FirstTime, out.LastTime = h.First, h.Last, h.FirstTime.UTC(), h.LastTime.UTC()
	out.Frames, out.RawBytes, out.Prev = h.Frames, h.RawBytes, hex.EncodeToString(h.Prev[:])
	return out, nil
}
