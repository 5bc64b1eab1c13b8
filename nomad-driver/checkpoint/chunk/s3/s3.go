// Package s3 is a backend of the snapshot store in a bucket of S3, or of any server that is compatible with it.
//
// It owns how names become objects and errors become the store's. What is stored, and in which order, is package chunk's; the bucket
// is the operator's: it is neither made nor configured here.
package s3

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/soulbox-dev/soulbox/nomad-driver/checkpoint/chunk"
)

// Bounds of one attempt. A request that fails for a moment is repeated until its context ends, a few times at most.
const (
	dialTimeout   = 5 * time.Second
	answerTimeout = 30 * time.Second // until the head of an answer
	maxRetries    = 4
	maxSecret     = 4096
)

// Config says which bucket, and as whom.
type Config struct {
	Endpoint string // URL of the server: http://host:port or https://host:port, without a path
	Bucket   string
	Prefix   string // of all names in it; the bucket may have other things beside
	Region   string // empty: asked for, or us-east-1
	// AccessKey and the content of SecretKeyFile are what to sign with. Where both are empty the environment (AWS_ACCESS_KEY_ID), the
	// file ~/.aws/credentials and the machine's role are tried, in this order.
	AccessKey     string
	SecretKeyFile string
	CAFile        string // of the certificates by which the server is known; empty: the system's
}

// Backend keeps a store in a bucket. Its methods may be called from any goroutine.
type Backend struct {
	client *minio.Client
	at     string // the endpoint
	bucket string
	prefix string
}

var _ chunk.Backend = (*Backend)(nil)

// Open returns the backend. It asks the server nothing: a node starts also while that is away.
func Open(c Config) (*Backend, error) {
	b, err := open(c)
	if err != nil {
		return nil, fmt.Errorf("snapshot store in S3: %w", err)
	}
	return b, nil
}

func open(c Config) (*Backend, error) {
	u, err := url.Parse(c.Endpoint)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.User != nil || u.RawQuery != "" {
		return nil, fmt.Errorf("endpoint %.200q is not http://host or https://host, with a port or without", c.Endpoint)
	}
	if c.Bucket == "" {
		return nil, errors.New("bucket is missing")
	}
	prefix := strings.Trim(c.Prefix, "/")
	if prefix != "" {
		if err := chunk.CheckName(prefix); err != nil {
			return nil, fmt.Errorf("prefix: %w", err)
		}
		prefix += "/"
	}
	creds, err := c.credentials()
	if err != nil {
		return nil, err
	}
	tr, err := c.transport()
	if err != nil {
		return nil, err
	}
	client, err := minio.New(u.Host, &minio.Options{Creds: creds, Secure: u.Scheme == "https", Region: c.Region, Transport: tr, MaxRetries: maxRetries})
	if err != nil {
		return nil, err
	}
	return &Backend{client: client, at: u.Host, bucket: c.Bucket, prefix: prefix}, nil
}

func (c Config) credentials() (*credentials.Credentials, error) {
	if c.AccessKey == "" && c.SecretKeyFile == "" {
		return credentials.NewChainCredentials([]credentials.Provider{&credentials.EnvAWS{}, &credentials.FileAWSCredentials{}, &credentials.IAM{}}), nil
	}
	if c.AccessKey == "" || c.SecretKeyFile == "" {
		return nil, errors.New("access_key and secret_key_file go together")
	}
	f, err := os.Open(c.SecretKeyFile)
	if err != nil {
		return nil, fmt.Errorf("secret_key_file: %w", err)
	}
	defer f.Close()
	secret, err := io.ReadAll(io.LimitReader(f, maxSecret))
	if err != nil {
		return nil, fmt.Errorf("secret_key_file: %w", err)
	}
	key := strings.TrimSpace(string(secret))
	if key == "" {
		return nil, fmt.Errorf("secret_key_file %s is empty", c.SecretKeyFile)
	}
	return credentials.NewStaticV4(c.AccessKey, key, ""), nil
}

func (c Config) transport() (*http.Transport, error) {
	tr := &http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: (&net.Dialer{Timeout: dialTimeout}).DialContext, TLSHandshakeTimeout: dialTimeout,
		ResponseHeaderTimeout: answerTimeout, MaxIdleConnsPerHost: 16, IdleConnTimeout: time.Minute,
		DisableCompression: true, // objects are compressed, or not to be
		TLSClientConfig:    &tls.Config{MinVersion: tls.VersionTLS12},
	}
	if c.CAFile == "" {
		return tr, nil
	}
	pem, err := os.ReadFile(c.CAFile)
	if err != nil {
		return nil, fmt.Errorf("ca_file: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("ca_file %s has no certificate", c.CAFile)
	}
	tr.TLSClientConfig.RootCAs = pool
	return tr, nil
}

// Identity is where the objects are.
func (b *Backend) Identity() string { return "s3 " + b.at + "/" + b.bucket + "/" + b.prefix }

// Put stores an object. S3 shows all of it or nothing, to everybody from then on.
func (b *Backend) Put(ctx context.Context, name string, data []byte) error {
	if err := chunk.CheckName(name); err != nil {
		return err
	}
	_, err := b.client.PutObject(ctx, b.bucket, b.prefix+name, bytes.NewReader(data), int64(len(data)), minio.PutObjectOptions{
		ContentType: "application/octet-stream", DisableMultipart: true,
	})
	return b.failed(ctx, "store", name, err)
}

// Get reads an object.
func (b *Backend) Get(ctx context.Context, name string, limit int64) ([]byte, error) {
	if err := chunk.CheckName(name); err != nil {
		return nil, err
	}
	o, err := b.client.GetObject(ctx, b.bucket, b.prefix+name, minio.GetObjectOptions{})
	if err != nil {
		return nil, b.failed(ctx, "read", name, err)
	}
	defer o.Close()
	data, err := io.ReadAll(io.LimitReader(o, limit+1))
	if err != nil {
		return nil, b.failed(ctx, "read", name, err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%w: %s is larger than %d bytes", chunk.ErrBad, name, limit)
	}
	return data, nil
}

// Delete removes an object.
func (b *Backend) Delete(ctx context.Context, name string) error {
	if err := chunk.CheckName(name); err != nil {
		return err
	}
	err := b.failed(ctx, "remove", name, b.client.RemoveObject(ctx, b.bucket, b.prefix+name, minio.RemoveObjectOptions{}))
	if errors.Is(err, chunk.ErrNotFound) {
		return nil
	}
	return err
}

// List returns the objects below a prefix.
func (b *Backend) List(ctx context.Context, prefix string) ([]chunk.Object, error) {
	if err := chunk.CheckName(strings.TrimSuffix(prefix, "/")); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx) // ends the listing where an error cuts it short
	defer cancel()
	var out []chunk.Object
	for o := range b.client.ListObjects(ctx, b.bucket, minio.ListObjectsOptions{Prefix: b.prefix + prefix, Recursive: true}) {
		if o.Err != nil {
			return nil, b.failed(ctx, "list", prefix, o.Err)
		}
		out = append(out, chunk.Object{Name: strings.TrimPrefix(o.Key, b.prefix), Size: o.Size, Put: o.LastModified})
	}
	return out, ctx.Err()
}

// failed makes the store's error of the client's.
func (b *Backend) failed(ctx context.Context, what, name string, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	resp := minio.ToErrorResponse(err)
	switch {
	case resp.Code == "NoSuchKey":
		return fmt.Errorf("%s: %w", name, chunk.ErrNotFound)
	case resp.StatusCode == 0 || resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests:
		return fmt.Errorf("%s %s in bucket %s: %w: %w", what, name, b.bucket, chunk.ErrUnavailable, err)
	}
	return fmt.Errorf("%s %s in bucket %s: %w", what, name, b.bucket, err)
}
