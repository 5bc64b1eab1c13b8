package build

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/soulbox-dev/soulbox/control/api"
	"github.com/soulbox-dev/soulbox/control/state"
)

// Limits of images that are pulled. What they unpack to is limited where they are unpacked.
const (
	maxImage  = 8 << 30 // bytes of all layers, as they are transferred
	maxLayers = 512
	dialTime  = 20 * time.Second
)

// images pulls images from registries.
type images struct {
	own       []string // registries that may be in this network, as host:port
	transport *http.Transport
}

func newImages(own []string) *images {
	i := &images{own: own}
	i.transport = &http.Transport{
		DialContext: i.dial, ForceAttemptHTTP2: true, TLSHandshakeTimeout: dialTime, ResponseHeaderTimeout: time.Minute,
		IdleConnTimeout: time.Minute,
	}
	return i
}

func (i *images) close() { i.transport.CloseIdleConnections() }

// dial connects to public addresses, and to the operator's own registries. The address is looked at when it is known: a name may stand
// for any.
func (i *images) dial(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTime, ControlContext: func(_ context.Context, _, to string, _ syscall.RawConn) error {
		if slices.Contains(i.own, address) {
			return nil
		}
		at, err := netip.ParseAddrPort(to)
		if err != nil {
			return err
		}
		if ip := at.Addr().Unmap(); !ip.IsGlobalUnicast() || ip.IsPrivate() || shared.Contains(ip) {
			return fmt.Errorf("%s is no public address, and %s is not among the registries that the operator allows", ip, address)
		}
		return nil
	}}
	return d.DialContext(ctx, network, address)
}

var shared = netip.MustParsePrefix("100.64.0.0/10") // RFC 6598: a provider's own

// imageRef is an image and how it is asked for.
type imageRef struct {
	name.Reference
	auth authn.Authenticator
}

// parseImage reads fromImage and fromImageRegistry.
func parseImage(in api.BuildInstructions) (imageRef, error) {
	if len(in.FromImage) > state.MaxTemplateName {
		return imageRef{}, invalid("fromImage has more than %d bytes", state.MaxTemplateName)
	}
	ref, err := name.ParseReference(in.FromImage)
	if err != nil {
		return imageRef{}, invalid("fromImage %.200q is not the name of an image: %s", in.FromImage, err)
	}
	out := imageRef{Reference: ref, auth: authn.Anonymous}
	if len(in.FromImageRegistry) == 0 || string(in.FromImageRegistry) == "null" {
		return out, nil
	}
	var r struct {
		Type               string `json:"type"`
		Username           string `json:"username"`
		Password           string `json:"password"`
		ServiceAccountJSON string `json:"serviceAccountJson"`
	}
	if err := json.Unmarshal(in.FromImageRegistry, &r); err != nil {
		return imageRef{}, invalid("fromImageRegistry is not as the contract has it")
	}
	switch r.Type {
	case "registry":
		out.auth = &authn.Basic{Username: r.Username, Password: r.Password}
	case "gcp":
		out.auth = &authn.Basic{Username: "_json_key", Password: r.ServiceAccountJSON}
	case "aws":
		return imageRef{}, invalid("fromImageRegistry.type aws is not supported: use type registry, with the username AWS and the password of `aws ecr get-login-password`")
	default:
		return imageRef{}, invalid("fromImageRegistry.type %.20q is none of registry, gcp, aws", r.Type)
	}
	return out, nil
}

// base finds the template that a build begins with, or pulls its image. The caller calls clean when the build's sandbox is gone.
func (s *Service) base(ctx context.Context, b *build, in api.BuildInstructions) (_ state.Template, clean func(), _ error) {
	from := in.FromTemplate
	if from == "" {
		if from = ownImage(in.FromImage); from == "" {
			return s.pull(ctx, b, in)
		}
	}
	t, err := s.cfg.Templates.Resolve(ctx, b.Tenant, from)
	return t, func() {}, err
}

// pull brings an image to a node, under a name of the build's own.
func (s *Service) pull(ctx context.Context, b *build, in api.BuildInstructions) (state.Template, func(), error) {
	ref, err := parseImage(in)
	if err != nil {
		return state.Template{}, nil, err
	}
	img, err := s.images.find(ctx, ref)
	if err != nil {
		return state.Template{}, nil, err
	}
	digest, err := img.Digest()
	if err != nil {
		return state.Template{}, nil, fmt.Errorf("image %s: %w", ref, err)
	}
	b.say("info", stepBase, "pulling "+ref.Name()+" ("+digest.String()+")")
	pr, pw := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		pw.CloseWithError(writeLayout(pw, img))
	}()
	t, clean, err := s.cfg.Templates.Temporary(ctx, b.Tenant, "build-"+b.ID, pr)
	pr.CloseWithError(errors.Join(err, io.ErrClosedPipe))
	<-done
	if err != nil {
		return state.Template{}, nil, fmt.Errorf("image %s: %w", ref, err)
	}
	t.Name = ref.Name()
	return t, clean, nil
}

// find asks a registry for an image of this machine's platform.
func (i *images) find(ctx context.Context, ref imageRef) (v1.Image, error) {
	img, err := remote.Image(ref.Reference, remote.WithContext(ctx), remote.WithAuth(ref.auth), remote.WithTransport(i.transport),
		remote.WithPlatform(v1.Platform{OS: "linux", Architecture: runtime.GOARCH}))
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", ref, err)
	}
	m, err := img.Manifest()
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", ref, err)
	}
	if len(m.Layers) > maxLayers {
		return nil, fmt.Errorf("image %s has %d layers, at most %d are taken", ref, len(m.Layers), maxLayers)
	}
	var size int64
	for _, l := range m.Layers {
		if size += l.Size; l.Size < 0 || size > maxImage {
			return nil, fmt.Errorf("image %s is larger than %d bytes", ref, int64(maxImage))
		}
	}
	return img, nil
}

// writeLayout writes an image as a tar of an OCI layout, which whoever unpacks it checks against its digests.
func writeLayout(w io.Writer, img v1.Image) error {
	manifest, err := img.RawManifest()
	if err != nil {
		return err
	}
	digest, err := img.Digest()
	if err != nil {
		return err
	}
	media, err := img.MediaType()
	if err != nil {
		return err
	}
	index, err := json.Marshal(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{
		{MediaType: media, Digest: digest, Size: int64(len(manifest))},
	}})
	if err != nil {
		return err
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return err
	}
	configDigest, err := img.ConfigName()
	if err != nil {
		return err
	}
	t := tar.NewWriter(w)
	put := func(path string, size int64, r io.Reader) error {
		if err := t.WriteHeader(&tar.Header{Name: path, Mode: 0o644, Size: size, Typeflag: tar.TypeReg}); err != nil {
			return err
		}
		n, err := io.Copy(t, io.LimitReader(r, size))
		if err == nil && n != size {
			err = fmt.Errorf("%s has %d bytes, %d were announced", path, n, size)
		}
		if err == nil { // its digest is checked where it ends
			_, err = io.Copy(io.Discard, io.LimitReader(r, 1))
		}
		return err
	}
	written := map[v1.Hash]bool{}
	blob := func(h v1.Hash, size int64, r io.Reader) error {
		written[h] = true
		return put("blobs/"+h.Algorithm+"/"+h.Hex, size, r)
	}
	if err := errors.Join(
		put("oci-layout", int64(len(layoutMark)), strings.NewReader(layoutMark)),
		put("index.json", int64(len(index)), bytes.NewReader(index)),
		blob(digest, int64(len(manifest)), bytes.NewReader(manifest)),
		blob(configDigest, int64(len(config)), bytes.NewReader(config)),
	); err != nil {
		return err
	}
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	for _, l := range layers {
		h, err := l.Digest()
		if err != nil {
			return err
		}
		if written[h] {
			continue // the same layer twice
		}
		size, err := l.Size()
		if err != nil {
			return err
		}
		r, err := l.Compressed() // an error at its end, where its digest is another
		if err != nil {
			return err
		}
		err = blob(h, size, r)
		if err = errors.Join(err, r.Close()); err != nil {
			return err
		}
	}
	return t.Close()
}

const layoutMark = `{"imageLayoutVersion":"1.0.0"}`

// provisionScript makes an image one that the contract's clients can use: with the user that they work as, who may become root.
const provisionScript = `set -e
if ! id -u user >/dev/null 2>&1; then
	if command -v useradd >/dev/null 2>&1; then
		useradd --create-home --shell "$(command -v bash || command -v sh)" user
	elif command -v adduser >/dev/null 2>&1; then
		adduser -D -s "$(command -v bash || command -v sh)" user
	else
		echo 'user:x:1000:1000::/home/user:/bin/sh' >>/etc/passwd
		echo 'user:x:1000:' >>/etc/group
		mkdir -p /home/user
		chown 1000:1000 /home/user
	fi
fi
if [ -d /etc/sudoers.d ] && [ ! -e /etc/sudoers.d/user ]; then
	echo 'user ALL=(ALL:ALL) NOPASSWD:ALL' >/etc/sudoers.d/user
	chmod 0440 /etc/sudoers.d/user
fi
if [ ! -x /bin/bash ]; then
	echo 'the image has no /bin/bash, which commands are run by' >&2
	exit 1
fi
`

// provision prepares an image's files for the steps. They begin as the contract has it: as user, at home.
func (a *site) provision(ctx context.Context) error {
	if err := a.asRoot(ctx, stepBase, nil, provisionScript); err != nil {
		return fmt.Errorf("prepare the image: %w", err)
	}
	a.user, a.cwd = "user", "/home/user"
	return nil
}
