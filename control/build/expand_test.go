package build

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

func TestExpand(t *testing.T) {
	vars := map[string]string{"A": "1", "A_2": "two", "EMPTY": "", "PATH": "/bin"}
	value := func(name string) (string, bool) {
		v, ok := vars[name]
		return v, ok
	}
	for text, want := range map[string]string{
		"":                        "",
		"plain {A} A":             "plain {A} A",
		"$A":                      "1",
		"x$A/$A_2.y":              "x1/two.y",
		"${A}0":                   "10",
		"/opt/bin:$PATH":          "/opt/bin:/bin",
		"[$NONE]":                 "[]",
		"${NONE:-word}":           "word",
		"${EMPTY:-word}":          "word",
		"${EMPTY-word}":           "",
		"${NONE-word}":            "word",
		"${A:-word}":              "1",
		"${NONE:-${A}/${A_2}}!":   "1/two!",
		"${A:+word}":              "word",
		"${EMPTY:+word}":          "",
		"${EMPTY+word}":           "word",
		"${NONE+word}":            "",
		`\$A`:                     "$A",
		`a\$\${A}`:                `a$${A}`,
		"5$":                      "5$",
		"$1 $$A $-":               "$1 $1 $-",
		"$(rm -rf /) `id` \"$A\"": "$(rm -rf /) `id` \"1\"",
		`\n`:                      `\n`,
	} {
		got, err := expand(text, value)
		must.NoError(t, err, must.Sprint(text))
		must.Eq(t, want, got, must.Sprint(text))
	}
	vars["BIG"] = strings.Repeat("x", 1000)
	deep := strings.Repeat("${NONE:-", maxNested+1) + strings.Repeat("}", maxNested+1)
	for _, text := range []string{strings.Repeat("$BIG", 1000), "${NONE:-" + strings.Repeat("$BIG", 1000) + "}", deep, "${A", "${}", "${-x}", "${A?no}", "${A:=b}", "${NONE:-${A}"} {
		_, err := expand(text, value)
		must.Error(t, err, must.Sprint(text))
	}
}

func TestUnquoted(t *testing.T) {
	for text, want := range map[string]string{
		`"a b"`: "a b", `""`: "", `"`: `"`, `""a""`: `""a""`, `"a`: `"a`, `a"`: `a"`, `"a" "b"`: `"a" "b"`, `"a\"b"`: `a"b`, `"a\"`: `"a\"`,
		`'a'`: `'a'`, `{"a":"b"}`: `{"a":"b"}`, `"$A"`: "$A", `"\$A"`: `\$A`, "": "", "a": "a",
	} {
		must.Eq(t, want, unquoted(text), must.Sprint(text))
	}
}

// What an instruction says in bytes bounds what it may become, times the values: no text makes it run on.
func FuzzExpand(f *testing.F) {
	for _, s := range []string{"$A", "${A:-${B:+$A}}", `\$A`, "${", "$$", "${A:-}"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		out, err := expand(text, func(name string) (string, bool) { return name, len(name)%2 == 0 })
		if err == nil && !strings.Contains(text, "$") && out != text {
			t.Errorf("%q became %q", text, out)
		}
		if len(out) > len(text) {
			t.Errorf("%q became the longer %q", text, out)
		}
	})
}

func TestOwnerScript(t *testing.T) {
	for user, want := range map[string]string{"user": "user:", "user:staff": "user:staff", "1000": "1000:1000", "0:5": "0:5", "user1": "user1:"} {
		out, err := exec.Command("/bin/sh", "-c", ownerScript+`owner "$1"`, "sh", user).Output()
		must.NoError(t, err)
		must.Eq(t, want+"\n", string(out))
	}
}

func TestHeadWriter_keepsNoMoreThanItMay(t *testing.T) {
	var w headWriter
	for range 3 {
		n, err := w.Write(make([]byte, 700<<10))
		must.NoError(t, err)
		must.Eq(t, 700<<10, n)
	}
	must.Len(t, 1<<20, w.b)
}
