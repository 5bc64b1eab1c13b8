package server

import (
	"io"
	"net"
	"sync"
	"time"
)

// lingerTime is how long a side may go on after the other one ended.
const lingerTime = 5 * time.Second

// splice copies both ways between two connections until both directions have ended, and closes them. What the near side
// sent already is in early. When one side ends, the other one is told by half a close and has lingerTime to end as well:
// closing at once could destroy what is still on its way to it. It returns the bytes that went to near.
func splice(near, far net.Conn, early io.Reader) int64 {
	var wg sync.WaitGroup
	wg.Go(func() {
		if early != nil {
			if _, err := io.Copy(far, early); err != nil {
				discard(near)
			}
		}
		_, _ = pump(far, near)
	})
	n, _ := pump(near, far)
	wg.Wait()
	_ = near.Close()
	_ = far.Close()
	return n
}

// pump copies src to dst until src ends, or for a while into nothing where dst does not take it any more.
func pump(dst, src net.Conn) (int64, error) {
	n, err := io.Copy(dst, src) // splice(2) where both are sockets of the kernel
	if err != nil {
		discard(src)
	}
	if half, ok := dst.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
	_ = dst.SetReadDeadline(time.Now().Add(lingerTime))
	return n, err
}

func discard(src net.Conn) {
	_ = src.SetReadDeadline(time.Now().Add(lingerTime))
	_, _ = io.Copy(io.Discard, src)
}
