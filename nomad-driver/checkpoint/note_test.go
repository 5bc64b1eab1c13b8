package checkpoint

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

// A note is the last that was written, however long those before it were.
func TestWriteNote_isTheLastOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), "note")
	for _, length := range []int{10, 4000, 3, 9000, 5, 4093, 1} {
		want := note{Version: 1, Files: []string{strings.Repeat("a", length)}}
		must.NoError(t, WriteNote(path, want))
		b, err := os.ReadFile(path)
		must.NoError(t, err)
		var got note
		must.NoError(t, json.Unmarshal(b, &got))
		must.Eq(t, want, got)
	}
}
