package objstore

import "crypto/rand"

// processID returns a name that no other opening of a store has.
func processID() string { return rand.Text()[:16] }
