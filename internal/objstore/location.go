package objstore

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/internal/vfs"
)

// Location says where a store is.
//
//	/srv/vault                                          a directory
//	s3://BUCKET/PREFIX?endpoint=https://HOST&region=R   S3, or what is compatible with it
//	azure://ACCOUNT/CONTAINER/PREFIX                    Azure Blob
//
// The prefix may be missing. Without an endpoint it is Amazon's or Azure's own. With
// lock=720h, what is written once cannot be deleted or replaced for that long by
// anyone: the store holds it (S3 Object Lock in compliance mode, Azure's immutability
// policy), for which the bucket or container must have been made.
type Location string

// Directory returns the directory, if it is one.
func (l Location) Directory() (string, bool) {
	return string(l), !strings.Contains(string(l), "://")
}

// Name returns the location without what is not for everyone's eyes.
func (l Location) Name() string {
	if u, err := url.Parse(string(l)); err == nil && u.User != nil {
		u.User = url.User("...")
		return u.String()
	}
	return string(l)
}

// Absolute returns the location with a directory's path made absolute.
func (l Location) Absolute() (Location, error) {
	dir, ok := l.Directory()
	if !ok {
		_, err := l.parse()
		return l, err
	}
	dir, err := filepath.Abs(dir)
	return Location(dir), err
}

// CredentialNames are the variables by which credentials are known: those of the
// stores' own tools.
func CredentialNames() []string {
	return []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AZURE_STORAGE_KEY", "AZURE_STORAGE_SAS_TOKEN"}
}

// Options are what is needed to open a location.
type Options struct {
	// Credentials by the names of CredentialNames.
	Credentials map[string]string
	// FS is the file system of directories. Default: the real one.
	FS vfs.FS
	// Transport sends requests to S3 and Azure. Default: one of its own.
	Transport http.RoundTripper
	// Now is by when locks are reckoned. Default: time.Now.
	Now func() time.Time
}

// place is a parsed location in a cloud.
type place struct {
	scheme, account, bucket, prefix string
	endpoint                        *url.URL // nil: the cloud's own
	region                          string
	lock                            time.Duration
}

// Open opens the store at a location, which must be there, and is never made.
func Open(ctx context.Context, l Location, o Options) (Store, error) {
	if o.FS == nil {
		o.FS = vfs.OS
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if dir, ok := l.Directory(); ok {
		return NewDir(o.FS, dir)
	}
	p, err := l.parse()
	if err != nil {
		return nil, err
	}
	open := openS3
	if p.scheme == "azure" {
		open = openAzure
	}
	b, err := open(p, o)
	if err != nil {
		return nil, fmt.Errorf("object store %s: %w", l.Name(), err)
	}
	s := &cloud{bucket: b, prefix: p.prefix, lock: p.lock, now: o.Now}
	// Whether it is there, and lets itself be read.
	if _, err := s.GetRange(ctx, "vault", 0, 1); err != nil && !missing(err) {
		return nil, fmt.Errorf("object store %s: %w", l.Name(), err)
	}
	return s, nil
}

// parse takes the location of a cloud apart.
func (l Location) parse() (place, error) {
	fail := func(format string, args ...any) (place, error) {
		return place{}, fmt.Errorf("vault location %q: "+format+"; want a directory, s3://BUCKET/PREFIX?endpoint=URL&region=REGION or azure://ACCOUNT/CONTAINER/PREFIX", append([]any{l.Name()}, args...)...)
	}
	u, err := url.Parse(string(l))
	if err != nil {
		return place{}, fmt.Errorf("vault location: %w", err)
	}
	p := place{scheme: u.Scheme}
	rest := strings.Trim(u.Path, "/")
	switch {
	case u.User != nil:
		return fail("it has credentials, which are not given here")
	case u.Scheme == "s3":
		p.bucket, p.prefix = u.Host, rest
	case u.Scheme == "azure":
		p.account = u.Host
		p.bucket, p.prefix, _ = strings.Cut(rest, "/")
	default:
		return fail("%q is not known", u.Scheme)
	}
	if p.bucket == "" || p.scheme == "azure" && p.account == "" {
		return fail("it names no bucket or container")
	}
	if p.prefix != "" && (checkName(p.prefix) != nil || path.Clean(p.prefix) != p.prefix) {
		return fail("prefix %q: want parts of [a-z0-9._-]", p.prefix)
	}
	for k, v := range u.Query() {
		if err := p.set(k, v[0]); err != nil {
			return fail("%s=%s: %w", k, v[0], err)
		}
	}
	return p, nil
}

// set takes an option of a location.
func (p *place) set(name, value string) error {
	var err error
	switch name {
	case "endpoint":
		if p.endpoint, err = url.Parse(value); err == nil && (p.endpoint.Host == "" || p.endpoint.Scheme != "http" && p.endpoint.Scheme != "https") {
			err = fmt.Errorf("want http://HOST or https://HOST")
		}
	case "region":
		p.region = value
	case "lock":
		if p.lock, err = time.ParseDuration(value); err == nil && p.lock < time.Hour {
			err = fmt.Errorf("want at least 1h")
		}
	default:
		err = fmt.Errorf("there is no such option")
	}
	return err
}
