package vault

import (
	"container/list"
	"sync"
)

// frameID names a frame of a stream.
type frameID struct {
	seg   *loaded
	frame uint32
}

// frameCache keeps the decoded frames that were used last, up to a limit.
type frameCache struct {
	limit int64

	// mu guards what follows.
	mu    sync.Mutex
	bytes int64
	byID  map[frameID]*list.Element
	used  *list.List // of *cachedFrame, the last used first
}

type cachedFrame struct {
	id frameID
	p  []byte
}

func newFrameCache(limit int64) *frameCache {
	return &frameCache{limit: limit, byID: map[frameID]*list.Element{}, used: list.New()}
}

// get returns a frame, which must not be written to, or nil.
func (c *frameCache) get(id frameID) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.byID[id]
	if !ok {
		return nil
	}
	c.used.MoveToFront(e)
	return e.Value.(*cachedFrame).p
}

func (c *frameCache) put(id frameID, p []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.byID[id]; ok {
		return
	}
	c.byID[id] = c.used.PushFront(&cachedFrame{id, p})
	c.bytes += int64(len(p))
	for c.bytes > c.limit && c.used.Len() > 1 {
		old := c.used.Remove(c.used.Back()).(*cachedFrame)
		delete(c.byID, old.id)
		c.bytes -= int64(len(old.p))
	}
}
