package vfs

import (
	"maps"
	"math/rand/v2"
	"slices"
)

// CrashClone returns the file system as a power cut at this moment might leave
// it; m stays as it is. What was synced is there. Of a file that was written
// since its last Sync, all, nothing or some pages survive, pages also as they
// were in between and torn at 512 bytes, and its size in between. Of changes to
// a directory since its last SyncDir all, none, or any survive, each a whole.
// A synced file whose name is lost is lost. The same rng state and the same
// operations give the same clone; with a nil rng only what was synced is there.
func (m *Mem) CrashClone(rng *rand.Rand) *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	durable := map[*inode]map[string]entry{}
	state := func(dir *inode) map[string]entry {
		if durable[dir] == nil {
			durable[dir] = maps.Clone(dir.durable)
		}
		return durable[dir]
	}
	for _, c := range surviving(m.log, rng) {
		c.make(state)
	}
	cl := cloner{
		names: func(dir *inode) map[string]*inode {
			names := map[string]*inode{}
			for name, e := range state(dir) {
				if e.node != nil {
					names[name] = e.node
				}
			}
			return names
		},
		content: func(n *inode) content { return n.crashed(rng) },
	}
	return cl.clone(m)
}

// surviving chooses among changes of directories, which are in order. A rename
// that survives takes along what gave the old name: its file cannot have two
// names then, or a directory be in itself.
func surviving(log []change, rng *rand.Rand) []change {
	type place struct {
		dir  *inode
		name string
	}
	var out []change
	needed := map[place]bool{}
	what := draw(rng)
	for _, c := range slices.Backward(log) {
		survives := what == kept || what == mixed && rng.IntN(2) == 0
		for _, p := range c.parts {
			survives = survives || needed[place{p.dir, p.name}]
			delete(needed, place{p.dir, p.name})
		}
		if !survives {
			continue
		}
		out = append(out, c)
		if len(c.parts) == 2 { // a rename, which begins with the old name
			needed[place{c.parts[0].dir, c.parts[0].name}] = true
		}
	}
	return out
}

// KillClone returns the file system as another process finds it after this one
// was killed: everything written is there, synced or not, and nothing is
// locked. What is in the clone counts as durable; m stays as it is.
func (m *Mem) KillClone() *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	cl := cloner{
		names:   func(dir *inode) map[string]*inode { return dir.entries },
		content: func(n *inode) content { return n.clone() },
	}
	return cl.clone(m)
}

// cloner makes a file system of what the functions say that is there.
type cloner struct {
	names   func(dir *inode) map[string]*inode
	content func(*inode) content
	seen    map[*inode]*inode
	used    int64
}

func (c *cloner) clone(m *Mem) *Mem {
	c.seen = map[*inode]*inode{}
	root := c.node(m.root)
	return &Mem{root: root, limit: m.limit, used: c.used}
}

// node clones a file or directory once, and returns the same for its other
// names. Names go in order, or the same rng would not give the same clone.
func (c *cloner) node(n *inode) *inode {
	if out := c.seen[n]; out != nil {
		return out
	}
	out := &inode{isDir: n.isDir, modTime: n.modTime}
	c.seen[n] = out
	if !n.isDir {
		out.content = c.content(n)
		c.used += out.allocated()
		return out
	}
	names := c.names(n)
	out.entries, out.durable = map[string]*inode{}, map[string]entry{}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		child := c.node(names[name])
		child.links++
		out.entries[name] = child
		out.durable[name] = entry{node: child}
	}
	return out
}
