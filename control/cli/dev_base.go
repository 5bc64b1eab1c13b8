package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"time"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/cli/transfer"
	"github.com/soulbox-dev/soulbox/nomad-driver/rootfs/base"
)

// templates makes the template base unless it exists, and returns the names of all and how long the making took.
func (d *development) templates(ctx context.Context) (names []string, made time.Duration, err error) {
	list, err := d.client.Templates(ctx)
	if err != nil {
		return nil, 0, fmt.Errorf("templates: %w", err)
	}
	for _, t := range list {
		names = append(names, t.Name)
	}
	if slices.Contains(names, base.Name) {
		return names, 0, nil
	}
	start := time.Now()
	fmt.Fprintf(d.env.Stdout, "==> Making the template %s, once\n", base.Name)
	source := d.source
	if source == "" {
		if source, err = base.Build(ctx, base.Options{Dir: "", Progress: indented{d.env.Stdout}}); err != nil {
			return nil, 0, err
		}
	}
	r, err := openSource(ctx, d.env, source)
	if err != nil {
		return nil, 0, fmt.Errorf("template %s: %w", base.Name, err)
	}
	var p *transfer.Progress
	if w, ok := d.env.screen(); ok {
		p = transfer.NewProgress(w, "    importing", 0)
	}
	t, err := d.client.ImportTemplate(ctx, base.Name, p.Reader(r), api.ImportOptions{Source: filepath.Base(source)})
	p.Done()
	_ = r.Close() // it was only read; the HTTP client may have closed it already
	if err != nil {
		return nil, 0, fmt.Errorf("template %s: %w", base.Name, err)
	}
	fmt.Fprintf(d.env.Stdout, "    imported %d files, %s\n\n", t.Files, transfer.Bytes(t.Bytes))
	return append(names, t.Name), time.Since(start), nil
}

// indented writes each line with four spaces before it. Each call ends a line.
type indented struct{ w io.Writer }

func (i indented) Write(p []byte) (int, error) {
	for line := range bytes.Lines(p) {
		if _, err := fmt.Fprintf(i.w, "    %s\n", bytes.TrimRight(line, "\r\n")); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}
