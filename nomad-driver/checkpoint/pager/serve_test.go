package pager

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
	"unsafe"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

// roleEnv makes this program one of the two processes of a test.
const roleEnv = "SOULBOX_TEST_PAGER"

func TestMain(m *testing.M) {
	switch os.Getenv(roleEnv) {
	case "server":
		os.Exit(Run())
	case "process":
		if err := process(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// The process has two mappings of so many pages: the second one has none that is missing but in its first half.
const testPages = 30_000

// fill is what page n of the first mapping holds.
func fill(b []byte, n int) {
	for i := 0; i < len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], uint64(n)<<12|uint64(i)|1)
	}
}

// process makes two mappings and a userfaultfd, hands that over, and changes its memory while it comes.
func process() error {
	dev, err := OpenDevice()
	if err != nil {
		return err
	}
	fd, err := unix.IoctlRetInt(dev, IoctlNew)
	if err != nil {
		return err
	}
	const size = testPages * pageSize
	mem, err := unix.MmapPtr(-1, 0, nil, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	if err := unix.Sendmsg(3, binary.LittleEndian.AppendUint64(nil, uint64(uintptr(mem))), unix.UnixRights(fd), nil, 0); err != nil {
		return err
	}
	if err := unix.Close(fd); err != nil {
		return err
	}
	if _, err := unix.Read(3, make([]byte, 1)); err != nil {
		return err
	}
	at := func(base unsafe.Pointer, page int) []byte {
		return unsafe.Slice((*byte)(unsafe.Add(base, page*pageSize)), pageSize)
	}
	want := make([]byte, pageSize)
	check := func(what string, base unsafe.Pointer, page, n int) error {
		clear(want)
		if n >= 0 {
			fill(want, n)
		}
		if !bytes.Equal(want, at(base, page)) {
			return fmt.Errorf("%s: page %d is not what page %d was", what, page, n)
		}
		return nil
	}
	const third = testPages / 3
	// The last third is emptied, in part given back; the middle one goes elsewhere; the first one stays. Of each, the odd hundreds were never there.
	if _, _, errno := unix.Syscall(unix.SYS_MADVISE, uintptr(pageAt(mem, 2*third)), 100*pageSize, unix.MADV_DONTNEED); errno != 0 {
		return errno
	}
	copy(at(mem, 2*third+1), []byte("written"))
	if err := unix.MunmapPtr(unsafe.Add(mem, (2*third+200)*pageSize), 100*pageSize); err != nil {
		return err
	}
	moved, err := unix.MremapPtr(unsafe.Add(mem, third*pageSize), third*pageSize, nil, (third+10)*pageSize, unix.MREMAP_MAYMOVE)
	if err != nil {
		return err
	}
	if got := string(at(mem, 2*third+1)[:7]); got != "written" {
		return fmt.Errorf("what was written is %q", got)
	}
	for i := range third {
		n := i
		if missing(i) {
			n = -1
		}
		if err := check("stays", mem, i, n); err != nil {
			return err
		}
		if n = third + i; missing(n) {
			n = -1
		}
		if err := check("moved", moved, i, n); err != nil {
			return err
		}
	}
	for i := range 10 {
		if err := check("grown", moved, third+i, -1); err != nil {
			return err
		}
	}
	for i := 2 * third; i < testPages; i++ {
		switch {
		case i == 2*third+1, i >= 2*third+200 && i < 2*third+300:
			continue
		case i < 2*third+100, missing(i):
			err = check("emptied", mem, i, -1)
		default:
			err = check("rest", mem, i, i)
		}
		if err != nil {
			return err
		}
	}
	fmt.Println("fine")
	return nil
}

func pageAt(base unsafe.Pointer, page int) unsafe.Pointer { return unsafe.Add(base, page*pageSize) }

// missing tells of the pages that no image has.
func missing(n int) bool { return n/100%2 == 1 }

// A process that empties, moves, gives back and grows its memory while it comes finds it as it would have.
func TestRun_servesWhatChanges(t *testing.T) {
	if err := Probe(); err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	images, err := os.Create(filepath.Join(dir, "pages"))
	must.NoError(t, err)
	defer images.Close()
	w := bufio.NewWriter(images)
	page := make([]byte, pageSize)
	var rs []Range
	for n := range testPages {
		if missing(n) {
			continue
		}
		if n%100 == 0 {
			rs = append(rs, Range{Dst: uint64(n) * pageSize, Off: uint64(len(rs)) * 100 * pageSize})
		}
		rs[len(rs)-1].Len += pageSize
		fill(page, n)
		_, err := w.Write(page)
		must.NoError(t, err)
	}
	must.NoError(t, w.Flush())

	sockets, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	must.NoError(t, err)
	theirs := os.NewFile(uintptr(sockets[1]), "socket")
	var out bytes.Buffer
	proc := role("process", theirs)
	proc.Stdout, proc.Stderr = &out, &out
	must.NoError(t, proc.Start())
	must.NoError(t, theirs.Close())
	b, oob := make([]byte, 8), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(sockets[0], b, oob, unix.MSG_CMSG_CLOEXEC)
	must.NoError(t, err)
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	must.NoError(t, err)
	fds, err := unix.ParseUnixRights(&msgs[0])
	must.NoError(t, err)
	must.NoError(t, Begin(fds[0]))
	base := binary.LittleEndian.Uint64(b)
	must.NoError(t, Register(fds[0], base, testPages*pageSize))
	for i := range rs {
		rs[i].Dst += base
	}
	// Some of it is to come first, in any order: also what is not missing, and what will be somewhere else.
	var order []First
	for _, i := range rand.Perm(testPages / 16)[:1000] {
		order = append(order, First{Dst: base + uint64(i)*16*pageSize, Len: 16 * pageSize})
	}
	state, err := CreateState(filepath.Join(dir, "state"), 1)
	must.NoError(t, err)
	defer state.Close()
	file, err := os.OpenFile(filepath.Join(dir, "state"), os.O_RDWR, 0)
	must.NoError(t, err)
	defer file.Close()

	server := role("server", file, images, file)
	server.Stderr = os.Stderr
	hand, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	must.NoError(t, err)
	socket := os.NewFile(uintptr(hand[1]), "socket")
	server.Stdin = socket
	ready, err := server.StdoutPipe()
	must.NoError(t, err)
	must.NoError(t, server.Start())
	must.NoError(t, socket.Close())
	must.NoError(t, state.Fill([]Space{{FD: firstFile + 1, Ranges: rs}}, order)) // it waits
	must.NoError(t, HandOver(hand[0], map[int]int{firstFile + 1: fds[0]}))
	must.NoError(t, unix.Close(hand[0]))
	line, err := bufio.NewReader(ready).ReadString('\n')
	must.NoError(t, err)
	must.StrHasPrefix(t, "ready ", line)
	must.NoError(t, unix.Close(fds[0]))
	_, err = unix.Write(sockets[0], []byte{1})
	must.NoError(t, err)
	must.NoError(t, proc.Wait(), must.Sprint(out.String()))
	must.Eq(t, "fine\n", out.String())
	must.NoError(t, server.Wait())
	must.True(t, state.Done())
	must.Eq(t, state.header().first, state.header().firstAt)
	for _, touched := range state.Touched() {
		must.Zero(t, touched.File)
		must.Less(t, uint32(len(rs)*100), touched.Page)
	}
	must.NoError(t, unix.Close(sockets[0]))
	var keeper int
	_, err = fmt.Sscanf(line, "ready %d", &keeper)
	must.NoError(t, err)
	for end := time.Now().Add(10 * time.Second); unix.Kill(keeper, 0) == nil; time.Sleep(time.Millisecond) {
		must.True(t, time.Now().Before(end), must.Sprint("its keeper is left"))
	}
}

func role(name string, files ...*os.File) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleEnv+"="+name)
	cmd.ExtraFiles = files
	return cmd
}

// What is in a state file is read again, by whoever has it.
func TestState_isReadAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	want := []Space{{FD: 9, Ranges: []Range{{Dst: 4096, Len: 8192, Off: 3, File: 1}}}, {FD: 7}}
	s, err := CreateState(path, 2)
	must.NoError(t, err)
	_, err = OpenState(path)
	must.ErrorIs(t, err, ErrState, must.Sprint("it says nothing yet"))
	must.NoError(t, s.Fill(want, []First{{Space: 1, Dst: 8192, Len: 4096}, {Dst: 4096, Len: 8192}}))
	must.NoError(t, s.write(want))
	again, err := OpenState(path)
	must.NoError(t, err)
	must.Eq(t, want, again.spaces())
	must.Eq(t, 2, again.Files())
	must.Eq(t, []int{9, 7}, again.FDs())
	must.False(t, again.Done())
	must.Len(t, 0, again.Touched())
	for i := range uint32(MaxTouched + 3) {
		s.touch(Touched{File: 1, Page: i})
	}
	must.Len(t, MaxTouched, again.Touched())
	must.Eq(t, Touched{File: 1, Page: 7}, again.Touched()[7])
	for _, want := range []first{{fd: 7, pages: 1, dst: 8192}, {fd: 9, pages: 2, dst: 4096}} {
		got, ok := again.nextFirst()
		must.True(t, ok)
		must.Eq(t, want, got)
	}
	must.True(t, s.watching() <= 0)
	s.Watch(time.Minute)
	must.Between(t, 50*time.Second, again.watching(), time.Minute)
	_, ok := s.nextFirst() // each once, whoever asks
	must.False(t, ok)
	m := (*message)(unsafe.Pointer(&s.header().inbox))
	m.event, m.a = eventFork, 12
	must.Eq(t, []int{9, 7, 12}, again.FDs())
	s.emptyInbox()
	must.Eq(t, []int{9, 7}, again.FDs())
	must.ErrorIs(t, s.write([]Space{{Ranges: make([]Range, maxEntries)}}), ErrTooMany)
	must.NoError(t, s.Close())
	must.NoError(t, again.Close())
	// One of an earlier version has neither.
	must.NoError(t, os.Truncate(path, int64(listsSize)))
	old, err := OpenState(path)
	must.NoError(t, err)
	must.Eq(t, want, old.spaces())
	old.touch(Touched{})
	must.Len(t, 0, old.Touched())
	_, ok = old.nextFirst()
	must.False(t, ok)
	must.NoError(t, old.Close())
	must.NoError(t, os.WriteFile(path, make([]byte, stateSize), 0o600))
	_, err = OpenState(path)
	must.ErrorIs(t, err, ErrState)
}
