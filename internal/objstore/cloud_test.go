package objstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/holdfast-dr/holdfast/internal/objstore"
	"github.com/holdfast-dr/holdfast/internal/objstore/objstoretest"
)

// clouds are the servers that a test runs against, each with a function that returns
// the location of a store that nobody else uses.
type cloudServer struct {
	objstoretest.Server
	location func(t *testing.T) objstore.Location
}

var places atomic.Int64

func s3Cloud(t *testing.T) cloudServer {
	s := objstoretest.S3(t, "vaults")
	return cloudServer{s, func(*testing.T) objstore.Location { return s.Bucket("vaults", fmt.Sprintf("v%d/x", places.Add(1))) }}
}

func azureCloud(t *testing.T) cloudServer {
	s := objstoretest.Azure(t)
	return cloudServer{s, func(t *testing.T) objstore.Location { return s.Container(t, fmt.Sprintf("vaults-%d", places.Add(1))) }}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (c cloudServer) open(t *testing.T, transport http.RoundTripper) objstore.Store {
	t.Helper()
	s, err := objstore.Open(t.Context(), c.location(t), objstore.Options{Credentials: c.Credentials, Transport: transport})
	must(t, err)
	return s
}

func eachCloud(t *testing.T, f func(t *testing.T, c cloudServer)) {
	t.Parallel()
	for name, start := range map[string]func(*testing.T) cloudServer{"s3": s3Cloud, "azure": azureCloud} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f(t, start(t))
		})
	}
}

func TestCloudConformance(t *testing.T) {
	eachCloud(t, func(t *testing.T, c cloudServer) {
		objstoretest.Run(t, func(t *testing.T) objstore.Store { return c.open(t, nil) })
	})
}

// TestCloudFaults runs the same suite while requests fail in every way that networks
// and stores have: what was asked for is done once, or the caller hears that it was
// not.
func TestCloudFaults(t *testing.T) {
	eachCloud(t, func(t *testing.T, c cloudServer) {
		f := &faults{next: http.DefaultTransport}
		t.Cleanup(func() {
			if f.hit.Load() < 50 {
				t.Errorf("only %d requests failed: this shows little", f.hit.Load())
			}
		})
		objstoretest.Run(t, func(t *testing.T) objstore.Store {
			return c.open(t, f)
		})
	})
}

// faults fails some requests.
type faults struct {
	next http.RoundTripper
	hit  atomic.Int64
}

var errCut = errors.New("connection reset by a test")

// RoundTrip implements http.RoundTripper.
func (f *faults) RoundTrip(r *http.Request) (*http.Response, error) {
	kind := rand.IntN(40)
	if kind > 6 {
		return f.next.RoundTrip(r)
	}
	f.hit.Add(1)
	switch kind {
	case 0: // nothing arrives
		return nil, errCut
	case 1:
		return answer(r, http.StatusServiceUnavailable, "SlowDown"), nil
	case 2:
		return answer(r, http.StatusTooManyRequests, "TooManyRequests"), nil
	case 3: // half of it arrives
		if r.Body == nil || r.ContentLength < 2 {
			return nil, errCut
		}
		half := r.Clone(r.Context())
		half.Body = io.NopCloser(io.MultiReader(io.LimitReader(r.Body, r.ContentLength/2), broken{}))
		_, err := f.next.RoundTrip(half)
		return nil, errors.Join(errCut, err)
	case 4, 5: // it is done, but nobody hears of it
		res, err := f.next.RoundTrip(r)
		if err != nil {
			return nil, err
		}
		_, _ = io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
		if kind == 4 {
			return nil, errCut
		}
		return answer(r, http.StatusInternalServerError, "InternalError"), nil
	default: // the answer breaks off
		res, err := f.next.RoundTrip(r)
		if err == nil && res.ContentLength > 1 {
			res.Body = struct {
				io.Reader
				io.Closer
			}{io.MultiReader(io.LimitReader(res.Body, res.ContentLength/2), broken{}), res.Body}
		}
		return res, err
	}
}

type broken struct{}

// Read implements io.Reader.
func (broken) Read([]byte) (int, error) { return 0, errCut }

func answer(r *http.Request, status int, code string) *http.Response {
	text := "<?xml version=\"1.0\"?><Error><Code>" + code + "</Code><Message>by a test</Message></Error>"
	return &http.Response{StatusCode: status, Status: http.StatusText(status), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Request: r,
		Header: http.Header{"Content-Type": {"application/xml"}, "X-Ms-Error-Code": {code}}, Body: io.NopCloser(strings.NewReader(text)), ContentLength: int64(len(text))}
}

// TestCloudBig writes and reads objects as big as segments become.
func TestCloudBig(t *testing.T) {
	eachCloud(t, func(t *testing.T, c cloudServer) {
		s := c.open(t, nil)
		data := make([]byte, 20<<20)
		r := rand.NewChaCha8([32]byte{1})
		_, _ = r.Read(data)
		must(t, s.PutIfAbsent(t.Context(), "big", data))
		got, _, err := s.Get(t.Context(), "big")
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%d of %d bytes come back: %v", len(got), len(data), err)
		}
		part, err := s.GetRange(t.Context(), "big", -1000, 1000)
		if err != nil || !bytes.Equal(part, data[len(data)-1000:]) {
			t.Errorf("the last 1000 bytes: %d, %v", len(part), err)
		}
		if err := s.PutIfAbsent(t.Context(), "big", data[:10]); !errors.Is(err, objstore.ErrExists) {
			t.Errorf("second put: %v", err)
		}
	})
}

// TestCloudPages lists more objects than a store tells at once.
func TestCloudPages(t *testing.T) {
	eachCloud(t, func(t *testing.T, c cloudServer) {
		s := c.open(t, nil)
		const n = 1200
		work := make(chan int)
		errs := make(chan error, 8)
		for range 8 {
			go func() {
				var err error
				for i := range work {
					err = errors.Join(err, s.Put(t.Context(), fmt.Sprintf("p/%04d", i), nil))
				}
				errs <- err
			}()
		}
		for i := range n {
			work <- i
		}
		close(work)
		for range 8 {
			must(t, <-errs)
		}
		for _, after := range []int{-1, 0, 999, 1000, 1100} {
			name := ""
			if after >= 0 {
				name = fmt.Sprintf("p/%04d", after)
			}
			entries, err := s.List(t.Context(), "p/", name)
			if err != nil || len(entries) != n-1-after || entries[0].Name != fmt.Sprintf("p/%04d", after+1) {
				t.Errorf("after %q: %d entries, %v", name, len(entries), err)
			}
		}
	})
}

func TestCloudNotThere(t *testing.T) {
	eachCloud(t, func(t *testing.T, c cloudServer) {
		l := c.location(t)
		for what, l := range map[string]objstore.Location{
			"bucket": objstore.Location(strings.NewReplacer("s3://vaults/", "s3://nobody/", "/vaults-", "/nobody-").Replace(string(l))),
		} {
			if _, err := objstore.Open(t.Context(), l, objstore.Options{Credentials: c.Credentials}); !errors.Is(err, objstore.ErrGone) {
				t.Errorf("a missing %s: %v, want ErrGone", what, err)
			}
		}
		_, err := objstore.Open(t.Context(), l, objstore.Options{})
		if err == nil || !strings.Contains(err.Error(), "no credentials") {
			t.Errorf("without credentials: %v", err)
		}
		wrong := map[string]string{}
		for k := range c.Credentials {
			wrong[k] = "bm90IHRoaXMgb25l"
		}
		if _, err := objstore.Open(t.Context(), l, objstore.Options{Credentials: wrong}); err == nil || errors.Is(err, objstore.ErrGone) {
			t.Errorf("with wrong credentials: %v", err)
		}
	})
}

// TestS3Lock writes to a bucket with Object Lock: what was written once cannot be
// removed by anyone while it is locked.
func TestS3Lock(t *testing.T) {
	t.Parallel()
	srv := objstoretest.S3(t)
	ctx := t.Context()
	c, err := minio.New(strings.TrimPrefix(srv.Endpoint, "http://"), &minio.Options{
		Creds: credentials.NewStaticV4(srv.Credentials["AWS_ACCESS_KEY_ID"], srv.Credentials["AWS_SECRET_ACCESS_KEY"], ""), TrailingHeaders: true})
	must(t, err)
	must(t, c.MakeBucket(ctx, "locked", minio.MakeBucketOptions{ObjectLocking: true}))
	s, err := objstore.Open(ctx, srv.Bucket("locked", "x")+"&lock=48h", objstore.Options{Credentials: srv.Credentials})
	must(t, err)
	must(t, s.PutIfAbsent(ctx, "segment", []byte("history")))
	must(t, s.Put(ctx, "lease", []byte("mine")))
	must(t, s.Delete(ctx, "segment")) // what a thief would do with our own credentials
	must(t, s.Put(ctx, "segment", []byte("ransom")))
	versions := 0
	for o := range c.ListObjects(ctx, "locked", minio.ListObjectsOptions{Prefix: "x/segment", WithVersions: true}) {
		must(t, o.Err)
		if o.IsDeleteMarker {
			continue
		}
		versions++
		r, err := c.GetObject(ctx, "locked", "x/segment", minio.GetObjectOptions{VersionID: o.VersionID})
		must(t, err)
		b, err := io.ReadAll(r)
		must(t, err)
		err = c.RemoveObject(ctx, "locked", "x/segment", minio.RemoveObjectOptions{VersionID: o.VersionID, GovernanceBypass: true})
		if string(b) == "history" && err == nil {
			t.Error("a locked version could be removed")
		}
		if string(b) == "history" {
			versions += 10
		}
	}
	if versions != 12 {
		t.Errorf("found %d, want the history and what replaced it", versions)
	}
}

func TestLocation(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{
		"s3://", "s3:///x", "azure://account", "azure:///c", "gs://bucket", "s3://b/UPPER", "s3://b/../c", "s3://b?endpoint=host", "s3://b?lock=1s", "s3://b?lock=x",
		"s3://b?nothing=1", "s3://id:secret@b/x", "s3://b/%zz",
	} {
		_, err := objstore.Open(t.Context(), objstore.Location(bad), objstore.Options{})
		if err == nil || strings.Contains(err.Error(), "no credentials") {
			t.Errorf("%s: %v", bad, err)
		}
		if err != nil && strings.Contains(err.Error(), "secret@") {
			t.Errorf("%s: the error has the secret: %v", bad, err)
		}
	}
	if dir, ok := objstore.Location("/srv/vault").Directory(); !ok || dir != "/srv/vault" {
		t.Errorf("/srv/vault: %q, %t", dir, ok)
	}
}

// TestCloudHangs has a store that takes requests and never answers: its caller can
// leave.
func TestCloudHangs(t *testing.T) {
	t.Parallel()
	for _, l := range []string{"s3://bucket?endpoint=http://x", "azure://account/container?endpoint=http://x"} {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		_, err := objstore.Open(ctx, objstore.Location(l), objstore.Options{Transport: hangs{},
			Credentials: map[string]string{"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AZURE_STORAGE_KEY": "bm90IHRoaXMgb25l"}})
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", l, err)
		}
	}
}

type hangs struct{}

// RoundTrip implements http.RoundTripper.
func (hangs) RoundTrip(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}
