package gateway

import (
	"context"
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast/internal/nbd"
)

// nbdServer returns the server of a stream's exports, one for each disk, named
// for it. One source at a time may be connected to each.
func (sv *served) nbdServer() *nbd.Server {
	exports := map[string]*nbd.Export{}
	for id, d := range sv.disks {
		// 512: the guest's own granularity, so that QEMU never has to read from
		// us what surrounds a small write.
		exports[id] = &nbd.Export{Name: id, Backend: d, FastZero: true, MinBlock: 512, PreferredBlock: blockSize}
	}
	return nbd.NewServer(nbd.ServerOptions{
		Logger: sv.log, MaxConns: 4 * len(exports),
		Lookup: func(_ context.Context, name string, _ *nbd.Conn) (*nbd.Export, error) {
			e, ok := exports[name]
			if !ok {
				return nil, fmt.Errorf("disk %q: %w", name, nbd.ErrUnknownExport)
			}
			return e, nil
		},
		Hooks: nbd.Hooks{
			OnConnect: func(_ context.Context, c *nbd.Conn) error {
				return sv.disks[c.Export].connected(c.ID, c.Drop)
			},
			OnDisconnect: func(c *nbd.Conn, _ error) { sv.disks[c.Export].disconnected(c.ID) },
		},
	})
}

// oldestRequest returns for how long the oldest request has been waiting.
func (sv *served) oldestRequest() time.Duration {
	var oldest time.Duration
	for _, st := range sv.server.Stats() {
		oldest = max(oldest, st.OldestUnanswered)
	}
	return oldest
}
