package build

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/soulbox-dev/soulbox/nomad-driver/guest"
	"github.com/soulbox-dev/soulbox/nomad-driver/node/nodeapi"
)

// Bounds of an expansion: no variable of a process can be longer (MAX_ARG_STRLEN), and words in words are read once for each level.
const (
	maxExpanded = 128 << 10
	maxNested   = 10
)

// expand puts values of variables into text as Dockerfiles have it: $NAME, ${NAME}, ${NAME:-word}, ${NAME-word}, ${NAME:+word} and
// ${NAME+word}, where a word may have variables too; \$ is a dollar sign. A variable that is not set is empty. No commands are run, and what is none
// of this stays as it is.
func expand(text string, value func(name string) (string, bool)) (string, error) {
	return expandWord(text, value, maxNested)
}

// expandWord is expand where words may be nested as deep as levels more.
func expandWord(text string, value func(string) (string, bool), levels int) (string, error) {
	if levels < 0 {
		return "", fmt.Errorf("variables have words in words, deeper than %d", maxNested)
	}
	var b strings.Builder
	for {
		if b.Len()+len(text) > maxExpanded {
			return "", fmt.Errorf("it is longer than %d bytes with its variables", maxExpanded)
		}
		i := strings.IndexByte(text, '$')
		if i < 0 {
			b.WriteString(text)
			return b.String(), nil
		}
		if i > 0 && text[i-1] == '\\' {
			b.WriteString(text[:i-1] + "$")
			text = text[i+1:]
			continue
		}
		b.WriteString(text[:i])
		text = text[i+1:]
		if name := variableAt(text); name != "" {
			v, _ := value(name)
			b.WriteString(v)
			text = text[len(name):]
			continue
		}
		if !strings.HasPrefix(text, "{") {
			b.WriteByte('$')
			continue
		}
		inside, rest, ok := braces(text)
		if !ok {
			return "", fmt.Errorf("%.60q: a brace is not closed", "$"+text)
		}
		v, err := parameter(inside, value, levels)
		if err != nil {
			return "", err
		}
		b.WriteString(v)
		text = rest
	}
}

// variableAt is the name of a variable that text begins with, or "".
func variableAt(text string) string {
	for i, c := range []byte(text) {
		if c == '_' || c|0x20 >= 'a' && c|0x20 <= 'z' || i > 0 && c >= '0' && c <= '9' {
			continue
		}
		return text[:i]
	}
	return text
}

// braces splits text behind the brace that closes the one it begins with.
func braces(text string) (inside, rest string, ok bool) {
	depth := 0
	for i, c := range []byte(text) {
		switch c {
		case '{':
			depth++
		case '}':
			if depth--; depth == 0 {
				return text[1:i], text[i+1:], true
			}
		}
	}
	return "", "", false
}

// parameter is what ${inside} stands for.
func parameter(inside string, value func(string) (string, bool), levels int) (string, error) {
	name := variableAt(inside)
	operator := inside[len(name):]
	v, set := value(name)
	if name == "" {
		return "", fmt.Errorf("%.60q is no variable", "${"+inside+"}")
	}
	if operator == "" {
		return v, nil
	}
	word, orEmpty := strings.CutPrefix(operator, ":")
	if orEmpty {
		set = v != ""
	}
	switch {
	case strings.HasPrefix(word, "-"):
		if set {
			return v, nil
		}
		return expandWord(word[1:], value, levels-1)
	case strings.HasPrefix(word, "+"):
		if !set {
			return "", nil
		}
		return expandWord(word[1:], value, levels-1)
	}
	return "", fmt.Errorf("%.60q: of the operators of a variable there are :-, -, :+ and +", "${"+inside+"}")
}

// unquoted is text without the double quotes that are around all of it: clients that read Dockerfiles leave them.
func unquoted(text string) string {
	if len(text) < 2 || text[0] != '"' || text[len(text)-1] != '"' {
		return text
	}
	inside := text[1 : len(text)-1]
	for i := 0; i < len(inside); i++ {
		switch inside[i] {
		case '\\':
			i++
			if i == len(inside) {
				return text // the last quote is escaped
			}
		case '"':
			return text
		}
	}
	return strings.ReplaceAll(inside, `\"`, `"`)
}

// expanded is text with variables as the next command of the build would find them.
func (a *site) expanded(ctx context.Context, text string) (string, error) {
	text = unquoted(text)
	if !strings.ContainsRune(text, '$') {
		return text, nil
	}
	var asked map[string]string
	var failed error
	out, err := expand(text, func(name string) (string, bool) {
		if v, ok := a.env[name]; ok {
			return v, true
		}
		if asked == nil && failed == nil {
			asked, failed = a.inherited(ctx)
		}
		v, ok := asked[name]
		return v, ok
	})
	return out, errors.Join(err, failed)
}

// inherited are the variables that a process of the build has without any of the template's: HOME, PATH and such.
func (a *site) inherited(ctx context.Context) (map[string]string, error) {
	var out headWriter
	exit, err := a.node.Run(ctx, a.box, nodeapi.ExecRequest{Start: guest.Start{
		Argv: []string{"/bin/sh", "-c", "exec cat /proc/self/environ"}, User: a.user, Cwd: "/", KillOnDetach: true,
	}}, nil, &out, nil)
	if err == nil && exit.Code != 0 {
		err = fmt.Errorf("exit code %d", exit.Code)
	}
	if err != nil {
		return nil, fmt.Errorf("variables of the sandbox: %w", err)
	}
	env := map[string]string{}
	for kv := range bytes.SplitSeq(out.b, []byte{0}) {
		if k, v, ok := strings.Cut(string(kv), "="); ok {
			env[k] = v
		}
	}
	return env, nil
}

// headWriter keeps the first MiB of what the sandbox says.
type headWriter struct{ b []byte }

func (w *headWriter) Write(p []byte) (int, error) {
	w.b = append(w.b, p[:min(len(p), 1<<20-len(w.b))]...)
	return len(p), nil
}
