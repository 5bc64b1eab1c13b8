package node

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/nomad-driver/guest/frame"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/logbook"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

func TestBudget_boundsWhatAllWriteTogether(t *testing.T) {
	b := newBudget(1000, 4000)
	now := time.Now()
	must.Eq(t, 0, b.spend(4000, now))
	must.Eq(t, time.Second, b.spend(1000, now), must.Sprint("the burst is used"))
	must.Eq(t, 2*time.Second, b.spend(1000, now), must.Sprint("the second one waits for the first as well"))
	must.Eq(t, 0, b.spend(0, now.Add(2*time.Second)))
	must.Eq(t, 0, b.spend(4000, now.Add(time.Hour)), must.Sprint("a long silence earns no more than the burst"))
	must.Eq(t, time.Second, b.spend(1000, now.Add(time.Hour)))
	must.Eq(t, 2*time.Second, b.spend(1000, now), must.Sprint("a clock that goes back earns nothing"))
}

// TestLines_costWhatIsStored: a mebibyte of newlines is a hundred times as much in the book.
func TestLines_costWhatIsStored(t *testing.T) {
	n := startNode(t, testConfig(shortDir(t)), nil)
	sb, err := n.client.Create(t.Context(), createRequest())
	must.NoError(t, err)
	b, err := n.box(sb.ID)
	must.NoError(t, err)
	l := &lines{n: n.Node, b: b, fields: map[string]string{"pid": "7"}}
	rest, pieces, wait := bytes.Repeat([]byte{'\n'}, 256<<10), 0, time.Duration(0)
	begin := time.Now()
	for len(rest) > 0 && wait == 0 {
		before := len(rest)
		rest, wait = l.add(frame.Stdout, rest)
		must.LessEq(t, maxLines, before-len(rest))
		pieces++
	}
	earned := int(float64(logRate) * time.Since(begin).Seconds()) // meanwhile
	must.Positive(t, len(rest), must.Sprint("not all of it at once"))
	stored := int64(0)
	files, err := filepath.Glob(filepath.Join(n.path("logs"), "*"))
	must.NoError(t, err)
	for _, f := range files {
		st, err := os.Stat(f)
		must.NoError(t, err)
		must.LessEq(t, int64(logbook.DefaultSize), st.Size())
		stored += st.Size()
	}
	must.Between(t, logBurst, int(stored), logBurst+logBurst/4+earned)
	must.LessEq(t, time.Second, wait, must.Sprint("no piece takes more than a moment's share"))
	other := &lines{n: n.Node, b: b}
	_, wait = other.add(frame.Stdout, []byte("a line of another process\n"))
	must.Positive(t, wait, must.Sprint("the budget is the sandbox's"))
	t.Logf("%d bytes printed, %d stored in %d pieces", 256<<10-len(rest), stored, pieces)
}

func TestFollowLogbook_ofASandboxThatIsGone(t *testing.T) {
	n := startNode(t, testConfig(shortDir(t)), nil)
	sb, err := n.client.Create(t.Context(), createRequest())
	must.NoError(t, err)
	b, err := n.box(sb.ID)
	must.NoError(t, err)
	n.note(b, logbook.Info, "line\r\n{\"forged\":true}\x1b]0;x\x07", map[string]string{"tag": "\x1b[2Jclear\n"})
	follow := func() (all []api.LogEntry) {
		must.NoError(t, n.client.FollowLogbook(t.Context(), sb.ID, nodeapi.LogQuery{}, func(e *api.LogEntry) error {
			if e != nil {
				all = append(all, *e)
			}
			return nil
		}))
		return all
	}
	must.NoError(t, n.client.Delete(t.Context(), sb.ID))
	waitUntil(t, "the record to go", func() bool { _, err := n.box(sb.ID); return err != nil })
	all := follow()
	must.Greater(t, 1, len(all))
	must.StrHasPrefix(t, "sandbox ended", all[len(all)-1].Message)
	for _, e := range all {
		if strings.HasPrefix(e.Message, "line") {
			must.Eq(t, "line\ufffd{\"forged\":true}", e.Message)
			must.Eq(t, "clear\ufffd", e.Fields["tag"])
			return
		}
	}
	t.Fatal("the entry is not there", all)
}
