package network

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

// The table of attacks in DESIGN.md names tests that there are, and has every case.
func TestCases_areTriedWhereTheDesignSaysSo(t *testing.T) {
	root := filepath.Join("..", "..")
	design, err := os.ReadFile("DESIGN.md")
	must.NoError(t, err)
	var cases []string
	words := regexp.MustCompile("`([a-z0-9/-]+)`|(Test[A-Za-z0-9_]+)")
	for _, row := range regexp.MustCompile(`(?m)^\| ([NR]\d\d) \|[^|]*\|(.*)\|$`).FindAllStringSubmatch(string(design), -1) {
		cases = append(cases, row[1])
		var source string
		found := 0
		for _, w := range words.FindAllStringSubmatch(row[2], -1) {
			if w[1] != "" {
				files, err := filepath.Glob(filepath.Join(root, w[1], "*_test.go"))
				must.NoError(t, err)
				must.SliceNotEmpty(t, files, must.Sprint(w[1]))
				source = ""
				for _, f := range files {
					b, err := os.ReadFile(f) //nolint:gosec // of this repository
					must.NoError(t, err)
					source += string(b)
				}
				continue
			}
			must.StrContains(t, source, "func "+w[2]+"(t *testing.T)", must.Sprintf("%s: %s", row[1], w[2]))
			found++
		}
		must.Positive(t, found, must.Sprint(row[1]))
	}
	must.EqOp(t, "N01 N02 N03 N05 N06 N07 N09 N10 N11 N12 R06 R07", strings.Join(cases, " "))
}
