package nbd

import (
	"context"

	"github.com/holdfast-dr/holdfast/internal/block"
)

// Backend is a disk to be served.
//
// For one connection WriteAt, Zero and Flush are called one at a time in the
// order of arrival: each only after the one before has returned. ReadAt, and
// all calls of different connections, may run at the same time as any other
// call. The context names the connection (ConnID) and ends when the connection
// does. Ranges lie within Size and are never empty, except that WriteAt's p,
// like ReadAt's, is at most the server's maximum request size.
//
// An error is told to the client as the error number found in it (Errno or
// syscall.Errno, else EIO). ErrDrop, or any error once the context has ended,
// cuts the connection without an answer.
type Backend interface {
	// Size returns the size in bytes. It is asked once for each connection.
	Size() int64
	// ReadAt fills p from off. p must not be kept.
	ReadAt(ctx context.Context, p []byte, off int64) error
	// WriteAt writes p at off; with fua it is durable on return. p must be
	// neither changed nor kept.
	WriteAt(ctx context.Context, p []byte, off int64, fua bool) error
	// Zero makes n bytes at off read as zeroes; with punch it may free the
	// space; with fua it is durable on return. n may be up to 4 GiB.
	Zero(ctx context.Context, off, n int64, punch, fua bool) error
	// Flush returns when all that was answered before is durable: on all
	// connections if the export has MultiConn.
	Flush(ctx context.Context) error
}

// StatusMapper is a Backend that knows where it has holes. Map is as in
// block.Image: spans cover the extent from its start without gaps and may stop
// early. It may run at the same time as any other call.
type StatusMapper interface {
	Map(ctx context.Context, e block.Extent) ([]block.Span, error)
}

// Export is a Backend under a name. It must not be changed once it is given to
// a server.
type Export struct {
	Name        string // at most 4096 bytes; may be empty, the default export
	Description string // for people; may be empty
	Backend     Backend
	ReadOnly    bool
	// MultiConn tells clients that they may use several connections at once: a
	// flush on one then covers what was answered on all.
	MultiConn bool
	// FastZero tells clients that Zero is never slower than a write of the
	// same length would be.
	FastZero bool
	// MinBlock is the granularity of requests in bytes, a power of two; others
	// are refused with EINVAL. 0 means 1.
	MinBlock uint32
	// PreferredBlock is a hint in bytes, a power of two. 0 means 4096.
	PreferredBlock uint32
	// MaxBlock is the largest read or write in bytes, at most the server's
	// MaxRequest, which 0 means.
	MaxBlock uint32
}

// flags returns the transmission flags. df says whether structured replies
// were negotiated.
func (e *Export) flags(df bool) Flags {
	f := FlagHasFlags | FlagSendFlush | FlagSendFUA
	if e.ReadOnly {
		f |= FlagReadOnly
	} else {
		f |= FlagSendTrim | FlagSendWriteZeroes
		if e.FastZero {
			f |= FlagSendFastZero
		}
	}
	if e.MultiConn {
		f |= FlagCanMultiConn
	}
	if df {
		f |= FlagSendDF
	}
	return f
}

// blockSizes returns the smallest, preferred and largest request.
func (e *Export) blockSizes(maxRequest uint32) (least, preferred, most uint32) {
	least = max(e.MinBlock, 1)
	preferred = e.PreferredBlock
	if preferred == 0 {
		preferred = defaultPreferred
	}
	most = maxRequest
	if e.MaxBlock != 0 {
		most = min(most, e.MaxBlock)
	}
	return least, max(preferred, least), max(most/least*least, least)
}
