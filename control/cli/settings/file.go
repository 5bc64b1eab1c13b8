package settings

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/hcl/v2/hclwrite"
	"github.com/zclconf/go-cty/cty"
)

const maxFile = 1 << 20 // bytes of a settings file

// File is a settings file: HCL, one attribute for each key.
type File struct {
	Path   string
	Values map[string]string // by key name
	// Loose says that others than the owner may read the file although it holds a secret.
	Loose bool
}

// Path returns where the person's file is: SOULBOX_CONFIG, else soulbox/config.hcl in XDG_CONFIG_HOME or ~/.config.
func Path(env func(string) string) (string, error) {
	if p := env(EnvConfig); p != "" {
		return filepath.Abs(p)
	}
	if dir := env("XDG_CONFIG_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "soulbox", "config.hcl"), nil
	}
	home := env("HOME")
	if home == "" {
		return "", fmt.Errorf("neither %s nor HOME is set: no place for the settings file", EnvConfig)
	}
	return filepath.Join(home, ".config", "soulbox", "config.hcl"), nil
}

// Load reads the file at path. One that does not exist is empty.
func Load(path string) (File, error) {
	f := File{Path: path, Values: map[string]string{}}
	src, mode, err := read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return f, nil
	}
	if err != nil {
		return f, fmt.Errorf("settings: %w", err)
	}
	parsed, diags := hclsyntax.ParseConfig(src, path, hcl.InitialPos)
	if diags.HasErrors() {
		return f, fmt.Errorf("settings: %w", diags)
	}
	attrs, diags := parsed.Body.JustAttributes()
	if diags.HasErrors() {
		return f, fmt.Errorf("settings: %w", diags)
	}
	for _, name := range sorted(attrs) {
		k, err := Find(name)
		if err != nil {
			return f, fmt.Errorf("%s: %w", attrs[name].Range, err)
		}
		v, diags := attrs[name].Expr.Value(nil)
		if diags.HasErrors() {
			return f, fmt.Errorf("settings: %w", diags)
		}
		if v.IsNull() || !v.Type().Equals(cty.String) {
			return f, fmt.Errorf("%s: %s must be a string", attrs[name].Range, name)
		}
		f.Values[name] = v.AsString()
		f.Loose = f.Loose || k.Secret && mode.Perm()&0o077 != 0
	}
	return f, nil
}

func sorted(attrs hcl.Attributes) []string {
	names := make([]string, 0, len(attrs))
	for name := range attrs {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

func read(path string) ([]byte, fs.FileMode, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = fmt.Errorf("%s is larger than %d bytes", path, maxFile)
	}
	return b, st.Mode(), err
}

// Set stores value under the key of that name in the file at path, which is made, with its folders, where it is missing. An
// empty value removes the key. Comments and the order of what is there stay. The file can be read by its owner alone.
func Set(path, name, value string) error {
	k, err := Find(name)
	if err != nil {
		return err
	}
	if value != "" {
		if value, err = k.check(value); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	src, _, err := read(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("settings: %w", err)
	}
	f, diags := hclwrite.ParseConfig(src, path, hcl.InitialPos)
	if diags.HasErrors() {
		return fmt.Errorf("settings: %w", diags)
	}
	if value == "" {
		f.Body().RemoveAttribute(name)
	} else {
		f.Body().SetAttributeValue(name, cty.StringVal(value))
	}
	return Write(path, f.Bytes())
}

// Encode returns a file's content with those values.
func Encode(values map[string]string) []byte {
	f := hclwrite.NewEmptyFile()
	for _, k := range keys {
		if v := values[k.Name]; v != "" {
			f.Body().SetAttributeValue(k.Name, cty.StringVal(v))
		}
	}
	return f.Bytes()
}

// Write puts data at path, whole or not at all, readable by its owner alone.
func Write(path string, data []byte) (err error) {
	// The file may be a link into a folder of dotfiles: the link stays and what it points to is replaced.
	if target, lerr := filepath.EvalSymlinks(path); lerr == nil {
		path = target
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("settings: %w", err)
	}
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+"-") // mode 0600
	if err != nil {
		return fmt.Errorf("settings: %w", err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("settings: %w", errors.Join(err, os.Remove(f.Name())))
		}
	}()
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return nil //nolint:nilerr // the file is in place; only its survival of a power cut is not certain
	}
	defer d.Close()
	_ = d.Sync()
	return nil
}
