package unpack

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"runtime"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

const (
	layoutFile   = "oci-layout"
	indexFile    = "index.json"
	refAnno      = "org.opencontainers.image.ref.name"
	maxDocument  = 4 << 20 // bytes of an index, a manifest or a configuration
	maxLayers    = 512
	maxManifests = 1024
	maxNesting   = 3
)

// isLayout reports whether root is an OCI image layout rather than a root.
func isLayout(root string) bool { return isFile(root, layoutFile) && isFile(root, indexFile) }

// image is one image of a layout.
type image struct {
	dir      *os.Root
	manifest v1.Manifest
	config   v1.ConfigFile
}

// openLayout chooses the image of the layout in dir: the one that ref names, or the only one; of several platforms, this
// machine's.
func openLayout(dir, ref string) (*image, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	img := &image{dir: root}
	if err := img.open(ref); err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return img, nil
}

func (i *image) close() { i.dir.Close() }

func (i *image) open(ref string) error {
	var mark struct {
		Version string `json:"imageLayoutVersion"`
	}
	if err := i.file(layoutFile, &mark); err != nil {
		return err
	}
	if mark.Version != "1.0.0" {
		return fmt.Errorf("%w: OCI layout version %.20q; this program reads 1.0.0", ErrInvalid, mark.Version)
	}
	var index v1.IndexManifest
	if err := i.file(indexFile, &index); err != nil {
		return err
	}
	desc, err := choose(index.Manifests, ref)
	if err != nil {
		return err
	}
	for range maxNesting {
		if !desc.MediaType.IsIndex() {
			return i.openManifest(desc)
		}
		var sub v1.IndexManifest
		if err := i.document(desc, &sub); err != nil {
			return err
		}
		if desc, err = choosePlatform(sub.Manifests); err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: the image's indexes are nested more than %d deep", ErrInvalid, maxNesting)
}

func (i *image) openManifest(desc v1.Descriptor) error {
	if err := i.document(desc, &i.manifest); err != nil {
		return err
	}
	if len(i.manifest.Layers) > maxLayers {
		return fmt.Errorf("%w: the image has more than %d layers", ErrInvalid, maxLayers)
	}
	if mt := i.manifest.Config.MediaType; mt != types.OCIConfigJSON && mt != types.DockerConfigJSON {
		return fmt.Errorf("%w: %s is not an image: its configuration is %.100q", ErrInvalid, desc.Digest, mt)
	}
	if err := i.document(i.manifest.Config, &i.config); err != nil {
		return err
	}
	if a := i.config.Architecture; a != "" && a != runtime.GOARCH {
		return fmt.Errorf("%w: the image is for %.40q, this machine is %s", ErrInvalid, a, runtime.GOARCH)
	}
	return nil
}

func choose(list []v1.Descriptor, ref string) (v1.Descriptor, error) {
	if len(list) > maxManifests {
		return v1.Descriptor{}, fmt.Errorf("%w: the layout has more than %d images", ErrInvalid, maxManifests)
	}
	if ref == "" {
		return choosePlatform(list)
	}
	var refs []string
	for _, d := range list {
		name := d.Annotations[refAnno]
		if name == ref || d.Digest.String() == ref {
			return d, nil
		}
		if name != "" && len(refs) < 20 {
			refs = append(refs, name)
		}
	}
	return v1.Descriptor{}, fmt.Errorf("%w: the layout has no image %q; it has %q", ErrInvalid, ref, refs)
}

// choosePlatform returns the one image among list that this machine can run.
func choosePlatform(list []v1.Descriptor) (v1.Descriptor, error) {
	if len(list) > maxManifests {
		return v1.Descriptor{}, fmt.Errorf("%w: an index has more than %d images", ErrInvalid, maxManifests)
	}
	fits := slices.DeleteFunc(slices.Clone(list), func(d v1.Descriptor) bool {
		if !d.MediaType.IsImage() && !d.MediaType.IsIndex() {
			return true
		}
		p := d.Platform
		return p != nil && (p.OS != "linux" || p.Architecture != runtime.GOARCH)
	})
	switch len(fits) {
	case 1:
		return fits[0], nil
	case 0:
		return v1.Descriptor{}, fmt.Errorf("%w: the layout has no image for linux/%s among %d", ErrInvalid, runtime.GOARCH, len(list))
	}
	var refs []string
	for _, d := range fits {
		refs = append(refs, d.Annotations[refAnno])
	}
	return v1.Descriptor{}, fmt.Errorf("%w: the layout has %d images; say which of %.20q", ErrInvalid, len(fits), refs)
}

// file reads a JSON file of the layout.
func (i *image) file(name string, v any) error {
	f, err := i.dir.Open(name)
	if err != nil {
		return fmt.Errorf("%w: OCI layout: %w", ErrInvalid, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxDocument+1))
	if err != nil {
		return err
	}
	return parse(name, b, v)
}

func parse(name string, b []byte, v any) error {
	if len(b) > maxDocument {
		return fmt.Errorf("%w: %s is larger than %d bytes", ErrInvalid, name, maxDocument)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrInvalid, name, err)
	}
	return nil
}

// document reads a JSON blob.
func (i *image) document(d v1.Descriptor, v any) error {
	if d.Size > maxDocument {
		return fmt.Errorf("%w: %s is larger than %d bytes", ErrInvalid, d.Digest, maxDocument)
	}
	return i.layer(d, func(r io.Reader) error {
		b, err := io.ReadAll(io.LimitReader(r, maxDocument+1))
		if err != nil {
			return err
		}
		return parse(d.Digest.String(), b, v)
	})
}

// layer calls use with the blob that d describes, and compares the blob's size and digest.
func (i *image) layer(d v1.Descriptor, use func(io.Reader) error) error {
	if raw, err := hex.DecodeString(d.Digest.Hex); err != nil || d.Digest.Algorithm != "sha256" || len(raw) != sha256.Size {
		return fmt.Errorf("%w: the digest %.100q is not a sha256", ErrInvalid, d.Digest)
	}
	f, err := i.dir.Open("blobs/sha256/" + d.Digest.Hex)
	if err != nil {
		return fmt.Errorf("%w: blob %s is missing from the layout: %w", ErrInvalid, d.Digest, err)
	}
	defer f.Close()
	b := &blob{r: f, h: sha256.New()}
	if err := use(b); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, b); err != nil { // what a decompressor did not need
		return err
	}
	if b.n != d.Size {
		return fmt.Errorf("%w: blob %s has %d bytes, not %d", ErrInvalid, d.Digest, b.n, d.Size)
	}
	if hex.EncodeToString(b.h.Sum(nil)) != d.Digest.Hex {
		return fmt.Errorf("%w: blob %s has another digest", ErrInvalid, d.Digest)
	}
	return nil
}

type blob struct {
	r io.Reader
	h hash.Hash
	n int64
}

func (b *blob) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	b.h.Write(p[:n])
	b.n += int64(n)
	return n, err
}
