package main

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os/exec"
	"time"
)

// chainPort is where the next guest of a chain listens.
const chainPort = "7000"

// runChain makes this guest one of a chain: it takes a number, from the guest
// before or as the next one if there is none, writes it to its disk, and only then
// tells the next guest; when that has answered, it answers itself. So no guest may
// ever have a higher number than the one before it.
func runChain(fl *flag.FlagSet, args []string) error {
	dev := fl.String("dev", "/dev/vdb", "disk to write")
	prev := fl.String("prev", "", "interface and address towards the guest before, like eth0,10.9.1.2/24")
	next := fl.String("next", "", "interface and address towards the guest after, and its address, like eth1,10.9.2.1/24,10.9.2.2")
	if err := fl.Parse(args); err != nil {
		return err
	}
	disk, _, err := openDisk(*dev)
	if err != nil {
		return err
	}
	defer disk.Close()
	before, after, err := neighbours(*prev, *next)
	if err != nil {
		return err
	}
	block := alignedBuffer(4096)
	var n uint64
	for told := time.Now(); ; {
		if n++; before != nil {
			if n, err = receive(before); err != nil {
				return err
			}
		}
		binary.LittleEndian.PutUint64(block, n)
		if _, err := disk.WriteAt(block, 0); err != nil {
			return err
		}
		if _, err := disk.WriteAt(block, 4096*int64(1+n%200)); err != nil { // so that there is more than one block to bring over
			return err
		}
		if after != nil {
			if err := send(after, n); err != nil {
				return err
			}
			if _, err := receive(after); err != nil {
				return err
			}
		}
		if before != nil {
			if err := send(before, n); err != nil {
				return err
			}
		}
		if time.Since(told) > time.Second {
			fmt.Printf("CHAIN %d\n", n)
			told = time.Now()
		}
	}
}

func send(c net.Conn, n uint64) error {
	_, err := c.Write(binary.LittleEndian.AppendUint64(nil, n))
	return err
}

func receive(c net.Conn) (uint64, error) {
	var b [8]byte
	_, err := io.ReadFull(c, b[:])
	return binary.LittleEndian.Uint64(b[:]), err
}

// neighbours sets the interfaces up, waits for the guest before and connects to the
// guest after.
func neighbours(prev, next string) (before, after net.Conn, err error) {
	if next != "" {
		var dev, me, to string
		if err := split(next, &dev, &me, &to); err != nil {
			return nil, nil, err
		}
		if err := address(dev, me); err != nil {
			return nil, nil, err
		}
		for range 600 { // it may not be up yet
			if after, err = net.DialTimeout("tcp", net.JoinHostPort(to, chainPort), time.Second); err == nil {
				break
			}
			time.Sleep(200 * time.Millisecond)
		}
		if err != nil {
			return nil, nil, err
		}
		fmt.Println("CHAIN-NEXT")
	}
	if prev == "" {
		return nil, after, nil
	}
	var dev, me string
	if err := split(prev, &dev, &me); err != nil {
		return nil, nil, err
	}
	if err := address(dev, me); err != nil {
		return nil, nil, err
	}
	l, err := net.Listen("tcp", ":"+chainPort)
	if err != nil {
		return nil, nil, err
	}
	fmt.Println("CHAIN-LISTENS")
	before, err = l.Accept()
	return before, after, err
}

func split(text string, into ...*string) error {
	for i, p := range into {
		end := len(text)
		if i < len(into)-1 {
			for end = 0; end < len(text) && text[end] != ','; end++ {
			}
			if end == len(text) {
				return fmt.Errorf("%q lacks a comma", text)
			}
		}
		*p, text = text[:end], text[min(end+1, len(text)):]
	}
	return nil
}

func address(dev, me string) error {
	up, err1 := exec.Command("ip", "link", "set", dev, "up").CombinedOutput()
	add, err2 := exec.Command("ip", "addr", "add", me, "dev", dev).CombinedOutput()
	if err := errors.Join(err1, err2); err != nil {
		return fmt.Errorf("address %s of %s: %w: %s%s", me, dev, err, up, add)
	}
	return nil
}
