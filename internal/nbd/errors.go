package nbd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
)

// Errors of the server.
var (
	// ErrDrop, returned by a Backend, has the connection cut without an answer
	// to the request, and no later request of the connection is looked at.
	ErrDrop = errors.New("nbd connection dropped")
	// ErrUnknownExport is what Lookup returns if there is no such export.
	ErrUnknownExport = errors.New("no such nbd export")
	// ErrTooManyConnections is the cause if a connection is one too many.
	ErrTooManyConnections = errors.New("too many nbd connections")
)

// Errors of both sides.
var (
	// ErrProtocol marks what the peer must not have sent. The connection is
	// cut.
	ErrProtocol = errors.New("nbd protocol violated by the peer")
	// ErrClosed is the error of a Client's requests after Close.
	ErrClosed = errors.New("nbd client closed")
	// ErrTLSRequired is the error of Dial without TLS if the server insists.
	ErrTLSRequired = errors.New("nbd server requires TLS")
	// ErrNotSupported is the error of a Client for what the server lacks.
	ErrNotSupported = errors.New("not supported by the nbd server")
)

// Errno is an error number of the protocol. A Backend may return one, wrapped
// or not, to choose what the client is told.
type Errno uint32

// The error numbers of the protocol.
const (
	EPERM     Errno = 1
	EIO       Errno = 5
	ENOMEM    Errno = 12
	EINVAL    Errno = 22
	ENOSPC    Errno = 28
	EOVERFLOW Errno = 75
	ENOTSUP   Errno = 95
	ESHUTDOWN Errno = 108
)

// Error returns the name of the error.
func (e Errno) Error() string {
	switch e {
	case EPERM:
		return "operation not permitted"
	case EIO:
		return "input/output error"
	case ENOMEM:
		return "out of memory"
	case EINVAL:
		return "invalid argument"
	case ENOSPC:
		return "no space left"
	case EOVERFLOW:
		return "value too large"
	case ENOTSUP:
		return "operation not supported"
	case ESHUTDOWN:
		return "server is shutting down"
	}
	return fmt.Sprintf("nbd error %d", uint32(e))
}

// Is says whether target is the same error as the operating system names it,
// so that errors.Is(err, syscall.ENOSPC) works on both sides of a connection.
func (e Errno) Is(target error) bool {
	sys, ok := target.(syscall.Errno)
	if !ok {
		return false
	}
	code, ok := systemErrno(sys)
	return ok && code == e
}

// systemErrno finds the protocol's number for an error of the system.
func systemErrno(e syscall.Errno) (Errno, bool) {
	switch e {
	case syscall.EPERM, syscall.EACCES, syscall.EROFS:
		return EPERM, true
	case syscall.EIO:
		return EIO, true
	case syscall.ENOMEM:
		return ENOMEM, true
	case syscall.EINVAL:
		return EINVAL, true
	case syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG:
		return ENOSPC, true
	case syscall.EOVERFLOW:
		return EOVERFLOW, true
	case syscall.EOPNOTSUPP:
		return ENOTSUP, true
	case syscall.ESHUTDOWN:
		return ESHUTDOWN, true
	}
	return 0, false
}

// errnoOf chooses what the client is told about an error of the Backend.
func errnoOf(err error) Errno {
	var code Errno
	if errors.As(err, &code) && code != 0 {
		return code
	}
	var sys syscall.Errno
	if errors.As(err, &sys) {
		if code, ok := systemErrno(sys); ok {
			return code
		}
	}
	switch {
	case errors.Is(err, fs.ErrPermission):
		return EPERM
	case errors.Is(err, errors.ErrUnsupported):
		return ENOTSUP
	}
	return EIO
}

// dropsConnection says whether an error of the Backend means that there is no
// answer. An ended context is such: what the client would take for a broken
// disk is only this server going away.
func dropsConnection(ctx context.Context, err error) bool {
	return errors.Is(err, ErrDrop) || ctx.Err() != nil || errors.Is(err, context.Canceled)
}

// RemoteError is an error with which a server answered a request of a Client.
type RemoteError struct {
	Command string // such as "write"
	Offset  int64
	Length  int64
	Code    Errno
	Message string // from the server, may be empty
}

// Error names the request and says what the server said.
func (e *RemoteError) Error() string {
	s := fmt.Sprintf("nbd %s of %d bytes at %d: server answered: %s", e.Command, e.Length, e.Offset, e.Code.Error())
	if e.Message != "" {
		s += fmt.Sprintf(" (%q)", e.Message)
	}
	return s
}

// Unwrap returns Code.
func (e *RemoteError) Unwrap() error { return e.Code }
