package block

// WithoutFallocate makes Zero write zeroes, as where fallocate is missing.
func (d *FileDisk) WithoutFallocate() { d.plain = true }
