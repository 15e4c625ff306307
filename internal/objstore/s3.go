package objstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// s3Bucket is a bucket of S3, or of what is compatible with it. It needs conditional
// writes (If-None-Match and If-Match), which Amazon has since the end of 2024.
type s3Bucket struct {
	client minio.Core
	name   string
}

func openS3(p place, o Options) (bucket, error) {
	id, key := o.Credentials["AWS_ACCESS_KEY_ID"], o.Credentials["AWS_SECRET_ACCESS_KEY"]
	if id == "" || key == "" {
		return nil, fmt.Errorf("no credentials: give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
	}
	at := p.endpoint
	if at == nil {
		at = &url.URL{Scheme: "https", Host: "s3.amazonaws.com"}
		if p.region != "" {
			at.Host = "s3." + p.region + ".amazonaws.com"
		}
	}
	if o.Transport == nil {
		t, err := minio.DefaultTransport(at.Scheme == "https")
		if err != nil {
			return nil, err
		}
		o.Transport = t
	}
	region := p.region
	if region == "" && p.endpoint != nil {
		region = "us-east-1" // what compatible stores take for theirs; asking would need a further right
	}
	c, err := minio.NewCore(at.Host, &minio.Options{
		Creds:  credentials.NewStaticV4(id, key, o.Credentials["AWS_SESSION_TOKEN"]),
		Secure: at.Scheme == "https", Region: region, Transport: o.Transport, TrailingHeaders: true, MaxRetries: clientTries,
	})
	if err != nil {
		return nil, err
	}
	return &s3Bucket{client: *c, name: p.bucket}, nil
}

func (b *s3Bucket) put(ctx context.Context, key string, data []byte, w writing) (string, error) {
	o := minio.PutObjectOptions{DisableMultipart: true, UserMetadata: map[string]string{nonceKey: w.nonce}, ContentType: "application/octet-stream"}
	if w.absent {
		o.SetMatchETagExcept("*")
	}
	if w.etag != "" {
		o.SetMatchETag(w.etag)
	}
	if !w.until.IsZero() {
		o.Mode, o.RetainUntilDate = minio.Compliance, w.until.UTC().Truncate(time.Second)
	}
	for try := 1; ; try++ {
		// Client, not Core: it retries, and checks what it sends.
		info, err := b.client.Client.PutObject(ctx, b.name, key, body(data), int64(len(data)), o)
		if minio.ToErrorResponse(err).StatusCode == http.StatusConflict && try < attempts {
			continue // two wrote at the same time; one has won now
		}
		return info.ETag, s3Error(err)
	}
}

func (b *s3Bucket) get(ctx context.Context, key string, off, length int64) (io.ReadCloser, found, error) {
	var o minio.GetObjectOptions
	if length > 0 {
		o.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+length-1))
	}
	return b.fetch(ctx, key, o)
}

func (b *s3Bucket) tail(ctx context.Context, key string, n int64) (io.ReadCloser, found, error) {
	var o minio.GetObjectOptions
	o.Set("Range", fmt.Sprintf("bytes=-%d", n))
	return b.fetch(ctx, key, o)
}

func (b *s3Bucket) fetch(ctx context.Context, key string, o minio.GetObjectOptions) (io.ReadCloser, found, error) {
	r, info, h, err := b.client.GetObject(ctx, b.name, key, o)
	if err != nil {
		return nil, found{}, s3Error(err)
	}
	return r, found{etag: info.ETag, nonce: h.Get("X-Amz-Meta-" + nonceKey)}, nil
}

func (b *s3Bucket) list(ctx context.Context, prefix, after string, add func(Entry)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	no := false
	for o := range b.client.Client.ListObjects(ctx, b.name, minio.ListObjectsOptions{Prefix: prefix, StartAfter: after, Recursive: true, FetchOwner: &no}) {
		if o.Err != nil {
			return s3Error(o.Err)
		}
		add(Entry{Name: o.Key, Size: o.Size, ModTime: o.LastModified})
	}
	return ctx.Err()
}

func (b *s3Bucket) remove(ctx context.Context, key string) error {
	return s3Error(b.client.RemoveObject(ctx, b.name, key, minio.RemoveObjectOptions{}))
}

// s3Error translates an error.
func s3Error(err error) error {
	var r minio.ErrorResponse
	if !errors.As(err, &r) {
		return err
	}
	switch {
	case r.Code == "NoSuchBucket":
		return fmt.Errorf("%w: there is no bucket %s", ErrGone, r.BucketName)
	case r.StatusCode == http.StatusForbidden, r.StatusCode == http.StatusUnauthorized:
		return fmt.Errorf("%w: %s: %s", errDenied, r.Code, r.Message)
	case r.Code == "NoSuchKey", r.Code == "NoSuchVersion", r.Code == "NotFound": // not every 404: a user whom the store does not know may be one
		return ErrNotFound
	case r.StatusCode == http.StatusPreconditionFailed, r.StatusCode == http.StatusConflict:
		return errCondition
	case r.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		return errRange
	}
	return fmt.Errorf("%s: %w", r.Code, err)
}
