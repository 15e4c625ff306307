package vault

import (
	"context"
	"fmt"
	"sort"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-dr/holdfast/internal/objstore"
	"github.com/holdfast-dr/holdfast/internal/vault/segment"
)

const (
	// loadAtOnce is how many segments are loaded before they are looked at in order,
	// and loaders how many of them at the same time: what a store far away takes for
	// one, it takes for as many at once.
	loadAtOnce = 256
	loaders    = 32
	// wholeBelow is the size, in bytes, below which a segment is read as a whole for
	// its index, in one request instead of two.
	wholeBelow = 128 << 10
)

// chainOf returns the objects that follow each other from a sequence number on, at
// most so many.
func chainOf(entries []objstore.Entry, seq uint64, most int) []objstore.Entry {
	var chain []objstore.Entry
	for len(chain) < most {
		e, p, ok := next(entries, seq)
		if !ok {
			break
		}
		chain, seq = append(chain, e), p.to+1
	}
	return chain
}

// loadMany loads segments, several at a time. Those behind the first that fails may
// not be there.
func (s *Stream) loadMany(ctx context.Context, chain []objstore.Entry) ([]*loaded, []error) {
	segs, errs := make([]*loaded, len(chain)), make([]error, len(chain))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(loaders)
	for i, e := range chain {
		g.Go(func() error {
			segs[i], errs[i] = s.loadSegment(ctx, e)
			return nil
		})
	}
	_ = g.Wait() // each has its own error
	return segs, errs
}

// loadSegment reads a segment's header and index, and checks them.
func (s *Stream) loadSegment(ctx context.Context, e objstore.Entry) (*loaded, error) {
	ahead := int64(segment.HeaderSize)
	if e.Size <= wholeBelow {
		ahead = e.Size
	}
	b, err := s.v.store.GetRange(ctx, e.Name, 0, ahead)
	if err != nil {
		return nil, gone(e.Name, err)
	}
	head := b[:min(len(b), segment.HeaderSize)]
	h, err := segment.ParseHeader(head)
	if err != nil {
		return nil, damaged(e.Name, err)
	}
	if e.Size != h.Size() {
		return nil, damaged(e.Name, fmt.Errorf("%w: it has %d bytes, its header says %d", ErrCorrupt, e.Size, h.Size()))
	}
	var index []byte
	if end := h.IndexOff + h.IndexLen; end <= int64(len(b)) {
		index = b[h.IndexOff:end]
	} else if index, err = s.v.store.GetRange(ctx, e.Name, h.IndexOff, h.IndexLen); err != nil {
		return nil, gone(e.Name, err)
	}
	r, err := segment.NewReader(head, index, s.key, s.v.codec)
	if err != nil {
		return nil, damaged(e.Name, err)
	}
	l, err := newLoaded(r, e.Name, e.Size)
	if err == nil && l.place().name(s.desc.ID, h.Timeline) != e.Name {
		err = fmt.Errorf("%w: it is segment %s", ErrCorrupt, l.place().name(s.desc.ID, h.Timeline))
	}
	if err != nil {
		return nil, damaged(e.Name, err)
	}
	return l, nil
}

// errMissing says that an object should be there.
var errMissing = fmt.Errorf("%w: it is missing", ErrCorrupt)

// gone says of a segment that should be there and is not that it is damaged.
func gone(name string, err error) error {
	if missing(err) {
		return damaged(name, errMissing)
	}
	return err
}

// next returns the object that has a sequence number as its first. What others
// stand for that begin before is passed over: it waits to be removed. Entries are
// sorted by name, hence by where they begin, and all are of segments.
func next(entries []objstore.Entry, seq uint64) (e objstore.Entry, p place, ok bool) {
	for _, x := range behind(entries, seq-1) {
		q, valid := placeOf(x.Name)
		if q.from != seq {
			break
		}
		if valid && (!ok || q.better(p)) {
			e, p, ok = x, q, true
		}
	}
	return e, p, ok
}

// behind returns the entries that begin behind a sequence number; see next.
func behind(entries []objstore.Entry, seq uint64) []objstore.Entry {
	return entries[sort.Search(len(entries), func(i int) bool {
		p, _ := placeOf(entries[i].Name)
		return p.from > seq
	}):]
}
