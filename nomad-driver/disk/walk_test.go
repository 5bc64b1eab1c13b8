package disk

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/sys/unix"
)

var plenty = Budget{Entries: 1 << 20, Time: time.Minute}

func TestWalk_countsWhatDuCounts(t *testing.T) {
	dir := t.TempDir()
	must.NoError(t, os.MkdirAll(filepath.Join(dir, "a/b"), 0o755))
	must.NoError(t, os.WriteFile(filepath.Join(dir, "a/b/big"), make([]byte, 1<<20), 0o600))
	must.NoError(t, os.Link(filepath.Join(dir, "a/b/big"), filepath.Join(dir, "second-name")))
	must.NoError(t, os.Symlink("/usr", filepath.Join(dir, "link")))
	sparse, err := os.Create(filepath.Join(dir, "sparse"))
	must.NoError(t, err)
	must.NoError(t, sparse.Truncate(1<<40))
	must.NoError(t, sparse.Close())
	must.NoError(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))

	u, exact, err := Walk(dir, plenty)
	must.NoError(t, err)
	must.True(t, exact)
	must.Eq(t, 6, u.Inodes) // a, b, big, link, sparse, fifo
	out, err := exec.Command("du", "-s", "--block-size=512", dir).Output()
	must.NoError(t, err)
	blocks, err := strconv.ParseInt(strings.Fields(string(out))[0], 10, 64)
	must.NoError(t, err)
	var root unix.Stat_t
	must.NoError(t, unix.Stat(dir, &root))
	must.Eq(t, (blocks-root.Blocks)*512, u.Bytes)
}

func TestWalk_staysInItsBudget(t *testing.T) {
	dir := t.TempDir()
	for i := range 50 {
		must.NoError(t, os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), nil, 0o600))
	}
	for _, tc := range []struct {
		name   string
		budget Budget
		inodes int64
		exact  bool
	}{
		{"enough", Budget{50, time.Minute}, 50, true},
		{"entries", Budget{20, time.Minute}, 20, false},
		{"time", Budget{50, 0}, 0, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			u, exact, err := Walk(dir, tc.budget)
			must.NoError(t, err)
			must.Eq(t, tc.inodes, u.Inodes)
			must.Eq(t, tc.exact, exact)
		})
	}
}

func TestWalk_ofHostileTrees(t *testing.T) {
	deep := t.TempDir()
	at := deep
	for range 3 * maxWalkDepth {
		at = filepath.Join(at, "d")
	}
	must.NoError(t, os.MkdirAll(at, 0o755))
	_, exact, err := Walk(deep, plenty)
	must.NoError(t, err)
	must.False(t, exact)

	link := filepath.Join(t.TempDir(), "link")
	must.NoError(t, os.Symlink("/etc", link))
	_, _, err = Walk(link, plenty)
	must.Error(t, err)

	_, _, err = Walk(filepath.Join(deep, "missing"), plenty)
	must.ErrorIs(t, err, os.ErrNotExist)
}
