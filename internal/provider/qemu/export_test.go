package qemu

import "github.com/holdfast-dr/holdfast/internal/provider"

// InterruptHydrate has Hydrate end after the step as if its process had died.
func InterruptHydrate(s *provider.Site, f func(step string) error) { s.Target.(*site).interrupt = f }

// AwaitExit waits until the process that was the machine's is gone.
var AwaitExit = Definition.awaitExit
