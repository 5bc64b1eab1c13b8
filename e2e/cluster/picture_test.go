package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coder/websocket"
	"github.com/coder/websocket/wsjson"
	"github.com/shoenig/test/must"
)

// picture has a browser look at a page, where pictures are asked for, and takes one once the page shows some words.
func (s *service) picture(t *testing.T, name, url, words string) {
	t.Helper()
	if *pictures == "" {
		return
	}
	b := s.startBrowser(t)
	b.call(t, "Page.navigate", map[string]any{"url": url}, nil)
	s.until(t, "the page "+url+" to show "+words, func() error {
		var r struct {
			Result struct{ Value string }
		}
		b.call(t, "Runtime.evaluate", map[string]any{"expression": "document.body ? document.body.innerText : ''"}, &r)
		if !strings.Contains(r.Result.Value, words) {
			return fmt.Errorf("it shows %.200q", r.Result.Value)
		}
		return nil
	})
	var shot struct{ Data []byte }
	b.call(t, "Page.captureScreenshot", map[string]any{"format": "png"}, &shot)
	to := filepath.Join(*pictures, name+".png")
	must.NoError(t, os.WriteFile(to, shot.Data, 0o644))
	t.Logf("%s: %d bytes", to, len(shot.Data))
}

// browser is a page of a headless one, spoken to in the DevTools protocol.
type browser struct {
	conn *websocket.Conn
	last int
}

func (s *service) startBrowser(t *testing.T) *browser {
	t.Helper()
	home := t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--user-data-dir="+home,
		"--window-size=1200,800", "--remote-debugging-port=0", "--remote-allow-origins=*", "about:blank")
	must.NoError(t, cmd.Start())
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // it was killed
	})
	var at []string
	s.until(t, "the browser's port", func() error {
		b, err := os.ReadFile(filepath.Join(home, "DevToolsActivePort"))
		if at = strings.Fields(string(b)); err == nil && len(at) != 2 {
			err = fmt.Errorf("%q", b)
		}
		return err
	})
	var pages []struct{ Type, WebSocketDebuggerURL string }
	s.until(t, "the browser's page", func() error {
		err := getJSON(t.Context(), "http://127.0.0.1:"+at[0]+"/json/list", &pages)
		if err == nil && (len(pages) == 0 || pages[0].Type != "page") {
			err = fmt.Errorf("%+v", pages)
		}
		return err
	})
	conn, _, err := websocket.Dial(t.Context(), pages[0].WebSocketDebuggerURL, nil) //nolint:bodyclose // the library's
	must.NoError(t, err)
	conn.SetReadLimit(64 << 20)
	return &browser{conn: conn}
}

// call asks the browser for something; what it says in between is of no interest.
func (b *browser) call(t *testing.T, method string, params any, result any) {
	t.Helper()
	b.last++
	must.NoError(t, wsjson.Write(t.Context(), b.conn, map[string]any{"id": b.last, "method": method, "params": params}))
	for {
		var answer struct {
			ID     int
			Result json.RawMessage
			Error  json.RawMessage
		}
		must.NoError(t, wsjson.Read(t.Context(), b.conn, &answer))
		if answer.ID != b.last {
			continue
		}
		must.Eq(t, "", string(answer.Error))
		if result != nil {
			must.NoError(t, json.Unmarshal(answer.Result, result))
		}
		return
	}
}
