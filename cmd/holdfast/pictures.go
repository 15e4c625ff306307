package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"

	"github.com/holdfast-dr/holdfast/internal/vfs"
)

// pictures keeps pictures of consoles in a directory, a file for each job.
type pictures string

var jobIDRE = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

func (p pictures) file(jobID string) (string, error) {
	if !jobIDRE.MatchString(jobID) {
		return "", fmt.Errorf("%q is no id of a job: %w", jobID, os.ErrNotExist)
	}
	return filepath.Join(string(p), jobID+".png"), nil
}

// Keep keeps a PNG picture, durably.
func (p pictures) Keep(jobID string, png []byte) error {
	name, err := p.file(jobID)
	if err != nil {
		return err
	}
	if err := vfs.OS.MkdirAll(string(p)); err != nil {
		return err
	}
	return vfs.WriteFileAtomic(vfs.OS, name, png)
}

// Picture returns it.
func (p pictures) Picture(jobID string) ([]byte, error) {
	name, err := p.file(jobID)
	if err != nil {
		return nil, err
	}
	return os.ReadFile(name)
}
