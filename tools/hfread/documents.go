package main

import (
	"bytes"
	"crypto/hmac"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/zeebo/blake3"
)

// vault is an open vault.
type vault struct {
	dir    string
	key    age.Identity
	id     string
	secret []byte
}

type vaultDocument struct {
	Format int    `json:"format"`
	ID     string `json:"id"`
	Secret []byte `json:"secret"`
}

type disk struct {
	ID   string `json:"id"`
	Size int64  `json:"size"`
}

type streamDocument struct {
	Format int    `json:"format"`
	ID     string `json:"id"`
	Name   string `json:"name"`
	Disks  []disk `json:"disks"`
	Key    []byte `json:"key"`
}

type timelineDocument struct {
	Format int    `json:"format"`
	ID     uint32 `json:"id"`
	Parent uint32 `json:"parent"`
	ForkAt string `json:"fork_at"`
	Disks  []disk `json:"disks"`

	forkAt uint64
}

type keptDocument struct {
	Format    int    `json:"format"`
	Timeline  uint32 `json:"timeline"`
	Epoch     uint64 `json:"epoch"`
	Upto      string `json:"upto"`
	Positions []struct {
		Position string `json:"position"`
	} `json:"positions"`
}

// split takes a document apart: its body and its code.
func split(b []byte) (body, mac []byte, err error) {
	const tail = len("\nblake3-mac ") + 64 + 1
	if len(b) < tail || len(b) > 1<<20 {
		return nil, nil, errors.New("no document")
	}
	body, line := b[:len(b)-tail], string(b[len(b)-tail:])
	if !strings.HasPrefix(line, "\nblake3-mac ") || !strings.HasSuffix(line, "\n") {
		return nil, nil, errors.New("no document: its last line is not its code")
	}
	mac, err = hex.DecodeString(strings.TrimSuffix(strings.TrimPrefix(line, "\nblake3-mac "), "\n"))
	return body, mac, err
}

func derive(context string, material []byte, n int) []byte {
	out := make([]byte, n)
	blake3.DeriveKey(context, material, out)
	return out
}

// check compares a document's code.
func (v *vault) check(name string, body, mac []byte) error {
	h, err := blake3.NewKeyed(derive("holdfast 2026 vault document v1", v.secret, 32))
	if err != nil {
		return err
	}
	_, _ = h.Write(append([]byte(name), 0)) // a hash never fails
	_, _ = h.Write(body)
	if !hmac.Equal(h.Sum(nil), mac) {
		return fmt.Errorf("%s: its code is not right", name)
	}
	return nil
}

func (v *vault) document(name string, to any) error {
	b, err := os.ReadFile(filepath.Join(v.dir, name))
	if err != nil {
		return err
	}
	body, mac, err := split(b)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	var f struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(body, &f); err != nil || f.Format != 1 {
		return fmt.Errorf("%s: format %d is not known here", name, f.Format)
	}
	if err := v.check(name, body, mac); err != nil {
		return err
	}
	return json.Unmarshal(body, to)
}

// unwrap decrypts an age file.
func (v *vault) unwrap(b []byte) ([]byte, error) {
	r, err := age.Decrypt(bytes.NewReader(b), v.key)
	if err != nil {
		return nil, err
	}
	plain, err := io.ReadAll(r)
	if err == nil && len(plain) != 32 {
		err = fmt.Errorf("a secret of %d bytes", len(plain))
	}
	return plain, err
}

func openVault(dir, keyFile string) (*vault, error) {
	text, err := os.ReadFile(keyFile)
	if err != nil {
		return nil, err
	}
	v := &vault{dir: dir}
	if v.key, err = age.ParseX25519Identity(strings.TrimSpace(string(text))); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(filepath.Join(dir, "vault"))
	if err != nil {
		return nil, err
	}
	body, _, err := split(b)
	if err != nil {
		return nil, err
	}
	// The secret first: it is what the code is made with.
	var d vaultDocument
	if err := json.Unmarshal(body, &d); err != nil {
		return nil, err
	}
	if v.secret, err = v.unwrap(d.Secret); err != nil {
		return nil, err
	}
	if err := v.document("vault", &d); err != nil {
		return nil, err
	}
	if v.id = hex.EncodeToString(derive("holdfast 2026 vault id v1", v.secret, 16)); v.id != d.ID {
		return nil, fmt.Errorf("the vault says that it is %s, and is %s", d.ID, v.id)
	}
	return v, nil
}

// stream is an open stream.
type stream struct {
	v         *vault
	doc       streamDocument
	key       []byte
	timelines map[uint32]timelineDocument
}

func (v *vault) stream(id string) (*stream, error) {
	s := &stream{v: v, timelines: map[uint32]timelineDocument{}}
	root := "streams/" + id + "/"
	if _, err := os.Stat(filepath.Join(v.dir, root, "deleted")); err == nil {
		return nil, fmt.Errorf("stream %s is being deleted", id)
	}
	if err := v.document(root+"stream", &s.doc); err != nil {
		return nil, err
	}
	var err error
	if s.key, err = v.unwrap(s.doc.Key); err != nil {
		return nil, err
	}
	for n := uint32(1); ; n++ {
		var d timelineDocument
		err := v.document(fmt.Sprintf("%stimelines/%08x", root, n), &d)
		if errors.Is(err, os.ErrNotExist) {
			return s, nil
		}
		if err != nil {
			return nil, err
		}
		if d.forkAt, err = strconv.ParseUint(d.ForkAt, 16, 63); err != nil || d.ID != n || d.Parent >= n || (d.Parent == 0) != (n == 1) {
			return nil, fmt.Errorf("timeline %d of %s is not as it must be", n, id)
		}
		s.timelines[n] = d
	}
}

// disksOf returns the disks of a timeline.
func (s *stream) disksOf(timeline uint32) []disk {
	for timeline != 0 {
		t := s.timelines[timeline]
		if len(t.Disks) > 0 {
			return t.Disks
		}
		timeline = t.Parent
	}
	return s.doc.Disks
}

// keeps says whether a position of a timeline's own is still there.
func (s *stream) keeps(timeline uint32, position uint64) error {
	var k keptDocument
	err := s.v.document(fmt.Sprintf("streams/%s/kept/%08x", s.doc.ID, timeline), &k)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	upto, err := strconv.ParseUint(k.Upto, 16, 63)
	if err != nil || position > upto {
		return err
	}
	for _, p := range k.Positions {
		if n, err := strconv.ParseUint(p.Position, 16, 63); err == nil && n == position {
			return nil
		}
	}
	return fmt.Errorf("position %016x of timeline %d is not kept any more", position, timeline)
}

// list says what there is.
func (v *vault) list(out io.Writer) error {
	fmt.Fprintf(out, "vault %s\n", v.id)
	ids, err := filepath.Glob(filepath.Join(v.dir, "streams", "*", "stream"))
	if err != nil {
		return err
	}
	for _, name := range ids {
		s, err := v.stream(filepath.Base(filepath.Dir(name)))
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "stream %s, %s\n", s.doc.ID, s.doc.Name)
		for n := uint32(1); n <= uint32(len(s.timelines)); n++ {
			fmt.Fprintf(out, "  timeline %08x, disks", n)
			for _, d := range s.disksOf(n) {
				fmt.Fprintf(out, " %s of %d bytes", d.ID, d.Size)
			}
			fmt.Fprintln(out)
			err := s.each(n, func(g *segment) error {
				for _, e := range g.entries {
					if e.kind == 3 {
						fmt.Fprintf(out, "    %016x %s %s\n", e.position, time.UnixMicro(e.time).UTC().Format(time.RFC3339Nano), e.mark)
					}
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}
