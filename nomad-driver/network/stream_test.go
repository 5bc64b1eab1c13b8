package network

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

func procFD(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// download is a connection from a slot to an endless source outside.
type download struct{ conn net.Conn }

func stream(t *testing.T, w *world, s *Slot, address string) *download {
	t.Helper()
	var l net.Listener
	must.NoError(t, inNamespace(w.outside, func() (err error) {
		l, err = net.Listen("tcp4", address)
		return err
	}))
	done := make(chan struct{})
	go func() {
		defer close(done)
		var ends []chan struct{}
		for {
			c, err := l.Accept()
			if err != nil {
				break
			}
			end := make(chan struct{})
			ends = append(ends, end)
			go func() {
				defer close(end)
				defer c.Close()
				for {
					if c.SetWriteDeadline(time.Now().Add(20*time.Second)) != nil {
						return
					}
					if _, err := c.Write(append(bytes.Repeat([]byte("x"), 4095), '\n')); err != nil {
						return
					}
				}
			}()
		}
		for _, end := range ends {
			<-end
		}
	}()
	d := &download{}
	must.NoError(t, inNamespace(s.Namespace(), func() (err error) {
		d.conn, err = net.DialTimeout("tcp4", address, 3*time.Second)
		return err
	}))
	t.Cleanup(func() {
		_, _ = l.Close(), d.conn.Close()
		<-done
	})
	return d
}

// flows reads more than could have been on the way already.
func (d *download) flows(t *testing.T) {
	t.Helper()
	must.NoError(t, d.conn.SetReadDeadline(time.Now().Add(10*time.Second)))
	_, err := io.CopyN(io.Discard, d.conn, 32<<20)
	must.NoError(t, err)
}

// ends reads until the connection is broken. It also sends: an end that only waits is not told.
func (d *download) ends(t *testing.T) {
	t.Helper()
	must.NoError(t, d.conn.SetDeadline(time.Now().Add(10*time.Second)))
	_, err := d.conn.Write([]byte("x"))
	if err == nil {
		_, err = io.Copy(io.Discard, d.conn)
	}
	must.ErrorContains(t, err, "connection reset")
}
