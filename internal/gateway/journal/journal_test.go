package journal

import (
	"bytes"
	"io"
	"math/rand/v2"
	"path"
	"testing"
	"time"

	holdfast "github.com/holdfast-dr/holdfast"
	"github.com/holdfast-dr/holdfast/internal/vfs"
)

// someRecords returns records of all kinds.
func someRecords(n int) []Record {
	rng := rand.New(rand.NewPCG(1, 2))
	out := make([]Record, n)
	for i := range out {
		r := Record{Kind: Kind(1 + rng.IntN(4)), Disk: uint16(rng.IntN(3)), Position: holdfast.Position(i + 1),
			Time: time.Unix(1_700_000_000, int64(i)), Offset: int64(rng.IntN(100)) * 512, Length: 512}
		if r.Kind == Write || r.Kind == Mark {
			r.Payload = make([]byte, 1+rng.IntN(900))
			for k := range r.Payload {
				r.Payload[k] = byte(rng.Uint32())
			}
		}
		out[i] = r
	}
	return out
}

func same(a, b Record) bool {
	return a.Kind == b.Kind && a.Disk == b.Disk && a.Position == b.Position && a.Time.Equal(b.Time) &&
		a.Offset == b.Offset && a.Length == b.Length && bytes.Equal(a.Payload, b.Payload)
}

// TestJournalCutAnywhere cuts a journal at every byte and flips bits of it:
// replay gives a prefix of what was appended, and nothing else.
func TestJournalCutAnywhere(t *testing.T) {
	t.Parallel()
	want := someRecords(12)
	var whole []byte
	for _, r := range want {
		whole = appendRecord(whole, r)
	}
	check := func(what string, b []byte) {
		r := bytes.NewReader(b)
		for i := 0; ; i++ {
			rec, err := readRecord(r)
			if err != nil {
				return
			}
			if i >= len(want) || !same(rec, want[i]) {
				t.Fatalf("%s: record %d is %+v", what, i, rec)
			}
		}
	}
	for n := range whole {
		check("cut", whole[:n])
	}
	rng := rand.New(rand.NewPCG(3, 4))
	for range 2000 {
		b := bytes.Clone(whole)
		b[rng.IntN(len(b))] ^= 1 << rng.IntN(8)
		check("bit flip", b)
	}
}

// TestJournalReleasesFiles keeps files until all of their records are released.
func TestJournalReleasesFiles(t *testing.T) {
	t.Parallel()
	fs := vfs.NewMem()
	j, err := Open(fs, "j", func(Record) error { t.Fatal("an empty journal has a record"); return nil })
	if err != nil {
		t.Fatal(err)
	}
	records := someRecords(30)
	for i, r := range records {
		if i%10 == 0 {
			if err := j.Rotate(); err != nil {
				t.Fatal(err)
			}
		}
		if err := j.Append(r); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		upTo  holdfast.Position
		files int
	}{{9, 3}, {10, 2}, {19, 2}, {29, 1}, {30, 1}} {
		if err := j.Release(c.upTo); err != nil {
			t.Fatal(err)
		}
		names, err := fs.List("j")
		if err != nil || len(names) != c.files {
			t.Errorf("released up to %d: files %v (%v), want %d", c.upTo, names, err, c.files)
		}
	}
	var got []Record
	if _, err := Open(fs, "j", func(r Record) error { got = append(got, r); return nil }); err != nil {
		t.Fatal(err)
	}
	if len(got) != 10 || !same(got[0], records[20]) {
		t.Errorf("reopened, it has %d records", len(got))
	}
}

// TestJournalFull cuts a record back that the disk did not take as a whole.
func TestJournalFull(t *testing.T) {
	t.Parallel()
	fs := vfs.NewMem()
	j, err := Open(fs, "j", nil)
	if err != nil {
		t.Fatal(err)
	}
	records := someRecords(3)
	if err := j.Append(records[0]); err != nil {
		t.Fatal(err)
	}
	records[1].Kind, records[1].Payload = Write, bytes.Repeat([]byte("full"), 10_000)
	fs.SetLimit(16 << 10)
	if err := j.Append(records[1]); err == nil {
		t.Fatal("a full disk took a record")
	}
	fs.SetLimit(1 << 30)
	if err := j.Append(records[1]); err != nil {
		t.Fatal(err)
	}
	var got []Record
	if _, err := Open(fs, "j", func(r Record) error { got = append(got, r); return nil }); err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || !same(got[1], records[1]) {
		t.Errorf("reopened, it has %d records, want 2", len(got))
	}
	if names, _ := fs.List("j"); len(names) != 1 || path.Ext(names[0]) != journalSuffix {
		t.Errorf("files are %v", names)
	}
}

func FuzzReadRecord(f *testing.F) {
	for _, r := range someRecords(8) {
		f.Add(appendRecord(nil, r))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		for {
			rec, err := readRecord(r)
			if err != nil {
				if _, err := io.Copy(io.Discard, r); err != nil {
					t.Fatal(err)
				}
				return
			}
			if again := appendRecord(nil, rec); len(again) != HeaderSize+len(rec.Payload) {
				t.Fatalf("a record of %d bytes encodes to %d", HeaderSize+len(rec.Payload), len(again))
			}
		}
	})
}
