package vfs

import (
	"errors"
	iofs "io/fs"
	"path"
)

// tempSuffix marks files that are not whole yet.
const tempSuffix = ".tmp"

// WriteFileAtomic writes a file as a whole: after a crash there is the old one,
// or none, or the new one. The new one is durable when it returns nil. Two
// callers must not write the same name at the same time.
func WriteFileAtomic(fs FS, name string, data []byte) error {
	temp := name + tempSuffix
	f, err := fs.Create(temp)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = fs.Rename(temp, name)
	}
	if err != nil {
		return errors.Join(err, ignoreMissing(fs.Remove(temp)))
	}
	return fs.SyncDir(path.Dir(name))
}

// ignoreMissing drops the error that there is no such file.
func ignoreMissing(err error) error {
	if errors.Is(err, iofs.ErrNotExist) {
		return nil
	}
	return err
}
