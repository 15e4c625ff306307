package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// StopAll kills every process of the lab that is still there: the guests' QEMU
// and the gateway. It knows them by the lab's directory on their command line,
// and touches no other.
func (l *Lab) StopAll() error {
	var errs []error
	for range 100 {
		pids, err := l.processes()
		if err != nil {
			return err
		}
		if len(pids) == 0 {
			return errors.Join(errs...)
		}
		for _, pid := range pids {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				errs = append(errs, err)
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	return errors.Join(append(errs, errors.New("processes of the lab do not end"))...)
}

// processes returns the processes with the lab's directory in an argument.
func (l *Lab) processes() ([]int, error) {
	return l.processesWith(func(args [][]byte) bool {
		for _, a := range args[1:] {
			if bytes.Contains(a, []byte(l.Dir+"/")) {
				return true
			}
		}
		return false
	})
}

// GatewayPIDs returns the gateway's processes: parent and child.
func (l *Lab) GatewayPIDs() ([]int, error) {
	return l.processesWith(func(args [][]byte) bool {
		return len(args) > 1 && string(args[0]) == l.Binary && string(args[1]) == "gateway" &&
			bytes.Contains(bytes.Join(args, []byte(" ")), []byte(l.Dir+"/"))
	})
}

// IngestPID returns the gateway's child process.
func (l *Lab) IngestPID() (int, error) {
	pids, err := l.processesWith(func(args [][]byte) bool {
		return len(args) > 2 && string(args[1]) == "gateway" && string(args[2]) == "ingest" && bytes.Contains(bytes.Join(args, []byte(" ")), []byte(l.Dir+"/"))
	})
	if err != nil || len(pids) != 1 {
		return 0, errors.Join(err, fmt.Errorf("%d ingest processes, want 1", len(pids)))
	}
	return pids[0], nil
}

// RecoveredProcesses returns how many recovered machines run.
func (l *Lab) RecoveredProcesses() (int, error) {
	pids, err := l.processesWith(func(args [][]byte) bool {
		return strings.HasPrefix(filepath.Base(string(args[0])), "qemu-system") && bytes.Contains(bytes.Join(args, []byte(" ")), []byte(l.Recovery+"/"))
	})
	return len(pids), err
}

func (l *Lab) processesWith(match func(args [][]byte) bool) ([]int, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, dir := range dirs {
		cmdline, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || len(cmdline) == 0 {
			continue // gone, or a kernel thread, or a zombie
		}
		args := bytes.Split(bytes.TrimRight(cmdline, "\x00"), []byte{0})
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid == os.Getpid() || pid == os.Getppid() || len(args) < 2 {
			continue
		}
		name := filepath.Base(string(args[0]))
		if (strings.HasPrefix(name, "qemu") || string(args[0]) == l.Binary) && match(args) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// RecoveredSerial returns the console log of the one recovered machine.
func (l *Lab) RecoveredSerial() (string, error) {
	logs, err := filepath.Glob(filepath.Join(l.Recovery, "recovered", "*", "serial.log"))
	if err != nil {
		return "", err
	}
	if len(logs) != 1 {
		return "", fmt.Errorf("site \"recovery\" has %d recovered machines, want 1", len(logs))
	}
	return logs[0], nil
}

// NewestSerial returns the console log of the machine that was recovered last.
func (l *Lab) NewestSerial() (string, error) {
	logs, err := filepath.Glob(filepath.Join(l.Recovery, "recovered", "*", "serial.log"))
	if err != nil {
		return "", err
	}
	newest, at := "", time.Time{}
	for _, log := range logs {
		if st, err := os.Stat(filepath.Dir(log)); err == nil && st.ModTime().After(at) {
			newest, at = log, st.ModTime()
		}
	}
	if newest == "" {
		return "", errors.New("site \"recovery\" has no recovered machine")
	}
	return newest, nil
}
