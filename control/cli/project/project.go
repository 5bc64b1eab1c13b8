// Package project is the file soulbox.hcl of a folder: what sandboxes that are created in that folder are like.
//
// It owns the file's words and their limits. A project file comes with code of others: it can neither name a service nor hold
// a key, and nothing in it is evaluated.
package project

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/gohcl"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/hcl/v2/hclwrite"
	"github.com/zclconf/go-cty/cty"
)

// FileName is the name of a project file.
const FileName = "soulbox.hcl"

const maxFile = 256 << 10 // bytes

// File is a project file. What is empty is left to flags and to the service.
type File struct {
	Template string            `hcl:"template"`
	CPU      float64           `hcl:"cpu,optional"`    // cores
	Memory   int64             `hcl:"memory,optional"` // MiB
	Timeout  string            `hcl:"timeout,optional"`
	User     string            `hcl:"user,optional"`
	Cwd      string            `hcl:"cwd,optional"`
	Hostname string            `hcl:"hostname,optional"`
	Env      map[string]string `hcl:"env,optional"`
	Metadata map[string]string `hcl:"metadata,optional"`
}

// Load reads the project file of the folder dir. ok is false where there is none.
func Load(dir string) (file File, ok bool, err error) {
	path := filepath.Join(dir, FileName)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return File{}, false, nil
	}
	if err != nil {
		return File{}, false, fmt.Errorf("project file: %w", err)
	}
	defer f.Close()
	src, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return File{}, false, fmt.Errorf("project file: %w", err)
	}
	file, err = Parse(src, path)
	return file, err == nil, err
}

// Parse reads a project file's content. name is for errors.
func Parse(src []byte, name string) (File, error) {
	var f File
	if len(src) > maxFile {
		return f, fmt.Errorf("project file %s is larger than %d bytes", name, maxFile)
	}
	parsed, diags := hclsyntax.ParseConfig(src, name, hcl.InitialPos)
	if !diags.HasErrors() {
		diags = gohcl.DecodeBody(parsed.Body, nil, &f)
	}
	if diags.HasErrors() {
		return File{}, fmt.Errorf("project file: %w", diags)
	}
	if err := f.check(); err != nil {
		return File{}, fmt.Errorf("project file %s: %w", name, err)
	}
	return f, nil
}

func (f File) check() error {
	if f.Template == "" {
		return errors.New("template is empty")
	}
	if f.CPU < 0 {
		return fmt.Errorf("cpu %v is negative", f.CPU)
	}
	if f.Memory < 0 {
		return fmt.Errorf("memory %d is negative", f.Memory)
	}
	if f.Timeout == "" {
		return nil
	}
	d, err := time.ParseDuration(f.Timeout)
	if err != nil {
		return fmt.Errorf("timeout %.40q is not a duration such as \"10m\"", f.Timeout)
	}
	if d <= 0 {
		return fmt.Errorf("timeout %s is not positive", f.Timeout)
	}
	return nil
}

// ErrExists is returned by Write where there is a file already.
var ErrExists = errors.New("there is a project file already")

// Write makes the project file of dir with that template and returns its path. It replaces one that exists only where force
// is set.
func Write(dir, template string, force bool) (string, error) {
	f := hclwrite.NewEmptyFile()
	b := f.Body()
	b.AppendUnstructuredTokens(comment("What `soulbox sandbox create` makes in this folder. Flags go before this file.\n"))
	b.SetAttributeValue("template", cty.StringVal(template))
	b.AppendNewline()
	b.AppendUnstructuredTokens(comment(
		"cpu      = 1       # cores\n", "memory   = 512     # MiB\n", "timeout  = \"1h\"\n", "env      = { NAME = \"value\" }\n",
		"metadata = { project = \"name\" }\n"))
	path := filepath.Join(dir, FileName)
	flags := os.O_WRONLY | os.O_CREATE | os.O_EXCL
	if force {
		flags = os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	}
	out, err := os.OpenFile(path, flags, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return path, fmt.Errorf("%s: %w", path, ErrExists)
	}
	if err != nil {
		return path, fmt.Errorf("project file: %w", err)
	}
	_, err = out.Write(f.Bytes())
	return path, errors.Join(err, out.Close())
}

func comment(lines ...string) hclwrite.Tokens {
	var t hclwrite.Tokens
	for _, l := range lines {
		t = append(t, &hclwrite.Token{Type: hclsyntax.TokenComment, Bytes: []byte("# " + l)})
	}
	return t
}
