package auth

import (
	"context"
	"slices"
	"sync"
)

// MemoryStore keeps tokens in memory, for tests and for a server that keeps
// nothing. The zero value is empty.
type MemoryStore struct {
	// mu guards tokens.
	mu     sync.Mutex
	tokens []Token
}

var _ Store = (*MemoryStore)(nil)

// PutToken implements Store.
func (m *MemoryStore) PutToken(_ context.Context, token Token) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tokens = append(m.tokens, token)
	return nil
}

// ListTokens implements Store.
func (m *MemoryStore) ListTokens(context.Context) ([]Token, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.tokens), nil
}

// DeleteToken implements Store.
func (m *MemoryStore) DeleteToken(_ context.Context, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tokens = slices.DeleteFunc(m.tokens, func(t Token) bool { return t.ID == id })
	return nil
}
