package guest

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/internal/systest/guest/record"
)

// Report is the judgement on a guest's disk.
type Report struct {
	// Clean says that the file system is without fault once its journal has
	// been replayed, as the guest itself would have done at its next boot.
	Clean bool `json:"clean"`
	// Records is how many good records were found, First and Last are the
	// numbers of the first and the last that is durable in both logs: every
	// number that the guest has acknowledged must be at most Last.
	Records uint64 `json:"records"`
	First   uint64 `json:"first"`
	Last    uint64 `json:"last"`
	// LastTime is when the last record was written, by the guest's clock.
	LastTime time.Time `json:"last_time"`
	// Gaps and Bad count, over both logs, numbers that are missing and
	// records that are damaged. Two logs that no crash can have left so,
	// the second ahead of the first, count as one more Bad.
	Gaps uint64 `json:"gaps"`
	Bad  uint64 `json:"bad"`
	// Detail is what the tools said, for a person.
	Detail string `json:"detail"`
}

// OK says that nothing is wrong with the disk: a clean file system with a
// gapless run of good records.
func (r Report) OK() bool { return r.Clean && r.Gaps == 0 && r.Bad == 0 }

// Check judges a guest's disk that nobody writes. Where is a raw or qcow2 file,
// or the URI of an NBD export (nbd://host:port/name or nbd+unix:///name?socket=path).
// The disk is only read. An error says that it could not be judged; a disk that
// is damaged is no error but a bad Report.
func Check(ctx context.Context, where string) (*Report, error) {
	temp, err := os.MkdirTemp("", "holdfast-check-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(temp)
	node, err := blockNode(ctx, where)
	if err != nil {
		return nil, fmt.Errorf("check %s: %w", where, err)
	}
	table := filepath.Join(temp, "table")
	if err := copyRange(ctx, node, 0, sectorSize, table); err != nil {
		return nil, fmt.Errorf("check %s: %w", where, err)
	}
	f, err := os.Open(table)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	offset, length, err := firstPartition(f)
	if err != nil {
		return &Report{Detail: err.Error()}, nil
	}
	partition := filepath.Join(temp, "partition")
	if err := copyRange(ctx, node, offset, length, partition); err != nil {
		return nil, fmt.Errorf("check %s: %w", where, err)
	}
	return checkPartition(ctx, partition, temp)
}

// CheckReader is Check of a disk that is at hand in this process, such as a
// view of a vault. The reader is not used after it returns.
func CheckReader(ctx context.Context, r io.ReaderAt) (*Report, error) {
	temp, err := os.MkdirTemp("", "holdfast-check-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(temp)
	offset, length, err := firstPartition(r)
	if err != nil {
		return &Report{Detail: err.Error()}, nil
	}
	partition := filepath.Join(temp, "partition")
	if err := copySparse(ctx, partition, io.NewSectionReader(r, offset, length)); err != nil {
		return nil, fmt.Errorf("check: copy the partition: %w", err)
	}
	return checkPartition(ctx, partition, temp)
}

// firstPartition reads the partition table. A disk without one is damaged.
func firstPartition(r io.ReaderAt) (offset, length int64, err error) {
	s := make([]byte, sectorSize)
	if _, err := r.ReadAt(s, 0); err != nil && !errors.Is(err, io.EOF) {
		return 0, 0, fmt.Errorf("read the partition table: %w", err)
	}
	start := int64(binary.LittleEndian.Uint32(s[454:]))
	count := int64(binary.LittleEndian.Uint32(s[458:]))
	if s[510] != 0x55 || s[511] != 0xaa || start == 0 || count == 0 {
		return 0, 0, errors.New("the disk has no partition table")
	}
	return start * sectorSize, count * sectorSize, nil
}

// checkPartition judges a copy of the partition, which it changes.
func checkPartition(ctx context.Context, partition, temp string) (*Report, error) {
	r := new(Report)
	var detail strings.Builder
	// A status of 4 and more says that faults are left, or could not be looked for.
	for _, args := range [][]string{{"-E", "journal_only", "-p", partition}, {"-f", "-n", partition}} {
		out, err := output(ctx, temp, "e2fsck", args...)
		fmt.Fprintf(&detail, "e2fsck %s: %s\n", strings.Join(args[:len(args)-1], " "), lastLines(out, 6))
		var exit *exec.ExitError
		switch {
		case err == nil:
			r.Clean = true
		case errors.As(err, &exit) && exit.Exited():
			// Replaying the journal may say 1: faults were mended. It is what it is for.
			r.Clean = args[0] == "-E" && exit.ExitCode() == 1
		default:
			return nil, err
		}
		if !r.Clean {
			break
		}
	}
	var logs [2]record.Log
	for i, name := range []string{"a.log", "b.log"} {
		to := filepath.Join(temp, name)
		// debugfs says 0 whatever happens; a log that is not there has no records.
		if err := tool(ctx, temp, "debugfs", "-R", "dump /data/"+name+" "+name, partition); err != nil {
			return nil, err
		}
		content, err := os.ReadFile(to)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		if logs[i], err = record.Scan(bytes.NewReader(content)); err != nil {
			return nil, err
		}
		fmt.Fprintf(&detail, "%s: %v tail=%d\n", name, logs[i], logs[i].Tail)
	}
	a, b := logs[0], logs[1]
	r.Records, r.First, r.Last, r.LastTime = b.Count, b.First, min(a.Last, b.Last), b.LastTime
	r.Gaps, r.Bad = a.Gaps+b.Gaps, a.Bad+b.Bad
	if b.Count > 0 && b.First != 1 {
		r.Gaps++
	}
	if !record.Ordered(a, b) {
		r.Bad++
		fmt.Fprintf(&detail, "the logs cannot have been so at one moment\n")
	}
	r.Detail = detail.String()
	return r, nil
}

// blockNode returns QEMU's description of a disk.
func blockNode(ctx context.Context, where string) (map[string]any, error) {
	if strings.HasPrefix(where, "nbd:") || strings.HasPrefix(where, "nbd+unix:") {
		u, err := url.Parse(where)
		if err != nil {
			return nil, err
		}
		server := map[string]any{"type": "unix", "path": u.Query().Get("socket")}
		if u.Scheme == "nbd" {
			port := u.Port()
			if port == "" {
				port = "10809"
			}
			server = map[string]any{"type": "inet", "host": u.Hostname(), "port": port}
		}
		return map[string]any{"driver": "nbd", "server": server, "export": strings.TrimPrefix(u.Path, "/")}, nil
	}
	where, err := filepath.Abs(where)
	if err != nil {
		return nil, err
	}
	out, err := output(ctx, "/", "qemu-img", "info", "--output=json", where)
	if err != nil {
		return nil, err
	}
	var info struct {
		Format string `json:"format"`
	}
	if err := json.Unmarshal([]byte(out), &info); err != nil {
		return nil, fmt.Errorf("read what qemu-img says: %w", err)
	}
	return map[string]any{"driver": info.Format, "file": map[string]any{"driver": "file", "filename": where}}, nil
}

// copyRange copies a range of a disk into a sparse raw file.
func copyRange(ctx context.Context, node map[string]any, offset, length int64, to string) error {
	slice, err := json.Marshal(map[string]any{"driver": "raw", "offset": offset, "size": length, "file": node})
	if err != nil {
		return err
	}
	return tool(ctx, "/", "qemu-img", "convert", "-q", "-O", "raw", "json:"+string(slice), to)
}

// copySparse copies a reader into a file, leaving holes for zeroes.
func copySparse(ctx context.Context, to string, r *io.SectionReader) error {
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(r.Size()); err != nil {
		return err
	}
	buf, zero := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); off < r.Size(); {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := r.ReadAt(buf, off)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if n == 0 {
			return io.ErrUnexpectedEOF
		}
		if !bytes.Equal(buf[:n], zero[:n]) {
			if _, err := f.WriteAt(buf[:n], off); err != nil {
				return err
			}
		}
		off += int64(n)
	}
	return nil
}
