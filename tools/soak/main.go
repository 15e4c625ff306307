// Command soak kills what works with a vault, as often as it is told, and looks each
// time whether anything is lost.
//
// A round has four processes: one that writes to a stream, one that prunes it, one that
// copies the vault to another store, and one that verifies it. Each is killed with SIGKILL at a random
// moment. Then the newest position, one that is kept and a random one are compared,
// whole, with what was written, and every position whose segment was acknowledged must
// be there. In between the vault and its copy are verified as a whole.
//
// With -damage it damages objects instead.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
)

func main() {
	kills := flag.Int("kills", 300, "how many processes to kill")
	damaged := flag.Int("damage", 0, "how many objects to damage, instead")
	dir := flag.String("dir", "", "where to make the vaults (default: a temporary directory)")
	seed := flag.Uint64("seed", 1, "of the random numbers")
	role := flag.String("role", "", "for the processes of a round")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	var err error
	o := options{kills: *kills, dir: *dir, seed: *seed, out: os.Stdout}
	switch {
	case *role != "":
		err = work(ctx, *role, *dir)
	case *damaged > 0:
		err = damage(ctx, o, *damaged)
	default:
		err = soak(ctx, o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(1)
	}
}
