package store

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
)

// lockFile takes the lock that one server at a time has. It is the kernel's,
// so that it ends with the process, however that ends; the number inside is
// only for people.
func lockFile(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		holder, _ := io.ReadAll(io.LimitReader(f, 32))
		err = ErrLocked
		if pid := strings.TrimSpace(string(holder)); pid != "" {
			err = fmt.Errorf("%w by process %s", ErrLocked, pid)
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	// Not worth a failure: nothing depends on it.
	_ = f.Truncate(0)
	_, _ = f.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
	return f, nil
}

// unlockFile gives the lock up, also if a process that is just being started
// still has a copy of the file.
func unlockFile(f *os.File) error {
	return errors.Join(syscall.Flock(int(f.Fd()), syscall.LOCK_UN), f.Close())
}
