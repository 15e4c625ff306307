package main

import (
	"context"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidwall/btree"

	"github.com/holdfast-dr/holdfast/internal/objstore"
)

// memStore is an object store in memory, which takes as long for a request as it is
// told to. Safe for concurrent use.
type memStore struct {
	latency atomic.Int64 // nanoseconds

	// mu guards what follows.
	mu      sync.RWMutex
	objects btree.Map[string, memObject]
	version int
	bytes   int64
}

type memObject struct {
	data []byte
	etag string
}

func newMemStore() *memStore { return &memStore{} }

func (m *memStore) wait() {
	if d := m.latency.Load(); d > 0 {
		time.Sleep(time.Duration(d))
	}
}

// size returns how many bytes the objects have.
func (m *memStore) size() int64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.bytes
}

// set puts an object into its place. The caller holds mu.
func (m *memStore) set(name string, data []byte) string {
	m.version++
	o := memObject{append([]byte(nil), data...), strconv.Itoa(m.version)}
	old, _ := m.objects.Set(name, o)
	m.bytes += int64(len(o.data) - len(old.data))
	return o.etag
}

func (m *memStore) Put(_ context.Context, name string, data []byte) error {
	m.wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.set(name, data)
	return nil
}

func (m *memStore) PutIfAbsent(_ context.Context, name string, data []byte) error {
	m.wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.objects.Get(name); ok {
		return objstore.ErrExists
	}
	m.set(name, data)
	return nil
}

func (m *memStore) CompareAndSwap(_ context.Context, name string, data []byte, etag string) (string, error) {
	m.wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	if o, _ := m.objects.Get(name); o.etag != etag {
		return "", objstore.ErrChanged
	}
	return m.set(name, data), nil
}

func (m *memStore) Get(_ context.Context, name string) ([]byte, string, error) {
	m.wait()
	m.mu.RLock()
	defer m.mu.RUnlock()
	o, ok := m.objects.Get(name)
	if !ok {
		return nil, "", objstore.ErrNotFound
	}
	return append([]byte(nil), o.data...), o.etag, nil
}

func (m *memStore) GetRange(ctx context.Context, name string, off, length int64) ([]byte, error) {
	b, _, err := m.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	if off < 0 {
		off += int64(len(b))
	}
	off = max(0, min(off, int64(len(b))))
	return b[off:min(off+length, int64(len(b)))], nil
}

func (m *memStore) List(_ context.Context, prefix, after string) ([]objstore.Entry, error) {
	m.wait()
	m.mu.RLock()
	defer m.mu.RUnlock()
	var out []objstore.Entry
	m.objects.Ascend(max(prefix, after), func(name string, o memObject) bool {
		if name > after && strings.HasPrefix(name, prefix) {
			out = append(out, objstore.Entry{Name: name, Size: int64(len(o.data))})
		}
		return name <= after || strings.HasPrefix(name, prefix)
	})
	return out, nil
}

func (m *memStore) Delete(_ context.Context, name string) error {
	m.wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	old, _ := m.objects.Delete(name)
	m.bytes -= int64(len(old.data))
	return nil
}
