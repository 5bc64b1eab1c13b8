package vm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Kernel is a kernel of the field, unpacked: Debian 12's cloud kernel, which has what development kernels often lack
// (cgroup v2 controllers, project quotas, netem, soft-dirty tracking).
type Kernel struct {
	Image   string // bzImage
	Modules string // …/lib/modules/<version>, with modules.dep
	Version string
}

// FetchKernel unpacks the kernel into dir, unless it is there, and returns it. It needs mmdebstrap and depmod (kmod).
func FetchKernel(ctx context.Context, dir string) (*Kernel, error) {
	root := filepath.Join(dir, "root")
	if k, err := findKernel(root); err == nil {
		return k, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	tmp, err := os.MkdirTemp(dir, "unpack-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	out, err := exec.CommandContext(ctx, "mmdebstrap", "--quiet", "--variant=extract",
		"--include=linux-image-cloud-amd64", "bookworm", filepath.Join(tmp, "root")).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("unpack the kernel: %w: %s", err, out)
	}
	k, err := findKernel(filepath.Join(tmp, "root"))
	if err != nil {
		return nil, err
	}
	out, err = exec.CommandContext(ctx, "depmod", "-b", filepath.Join(tmp, "root"), k.Version).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("index the modules of kernel %s: %w: %s", k.Version, err, out)
	}
	if err := os.Rename(filepath.Join(tmp, "root"), root); err != nil {
		return nil, err
	}
	return findKernel(root)
}

func findKernel(root string) (*Kernel, error) {
	images, err := filepath.Glob(filepath.Join(root, "boot", "vmlinuz-*"))
	if err != nil {
		return nil, err
	}
	if len(images) != 1 {
		return nil, fmt.Errorf("kernel in %s: found %d images, want 1", root, len(images))
	}
	version := filepath.Base(images[0])[len("vmlinuz-"):]
	modules := filepath.Join(root, "lib", "modules", version)
	if _, err := os.Stat(modules); err != nil {
		return nil, err
	}
	return &Kernel{Image: images[0], Modules: modules, Version: version}, nil
}
