package keys

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// The names of the files of a certificate in its folder.
const (
	CAFile   = "ca.pem"
	CertFile = "cert.pem"
	KeyFile  = "key.pem"
)

// WriteFiles writes c into dir, which it makes where it is missing, each file durably and readable by its owner only. The
// certificate is written last: who reads the files again when they change finds a pair that fits at the latest then.
func WriteFiles(dir string, c *Certificate) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("certificate of %s: %w", c.Identity, err)
	}
	for _, f := range []struct {
		name string
		data []byte
	}{{CAFile, c.CA}, {KeyFile, c.Key}, {CertFile, c.Chain}} {
		if err := WriteFile(filepath.Join(dir, f.name), f.data); err != nil {
			return fmt.Errorf("certificate of %s: %w", c.Identity, err)
		}
	}
	return nil
}

// WriteFile replaces a file by data, with mode 0600: a reader, and a machine that loses power, see the old file or the new.
func WriteFile(path string, data []byte) (err error) {
	dir, name := filepath.Split(path)
	f, err := os.CreateTemp(dir, "."+name+"-*") // with mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	if dir == "" {
		dir = "."
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
