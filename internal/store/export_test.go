package store

import (
	"context"
	"fmt"
)

// LimitSize lets the database grow by no more than a few pages, as on a disk
// that is nearly full.
func (s *Store) LimitSize(ctx context.Context, morePages int) error {
	var pages int
	if err := s.writer.QueryRowContext(ctx, "PRAGMA page_count").Scan(&pages); err != nil {
		return err
	}
	var limit int
	return s.writer.QueryRowContext(ctx, fmt.Sprintf("PRAGMA max_page_count = %d", pages+morePages)).Scan(&limit)
}

// Pragma returns a pragma's value on the connection that writes.
func (s *Store) Pragma(ctx context.Context, name string) (value string, err error) {
	err = s.writer.QueryRowContext(ctx, "PRAGMA "+name).Scan(&value)
	return value, err
}
