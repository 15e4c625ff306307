package objstore

import (
	"context"
	"crypto/md5"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
)

// azureContainer is a container of Azure Blob.
type azureContainer struct{ client *container.Client }

func openAzure(p place, o Options) (bucket, error) {
	at := "https://" + p.account + ".blob.core.windows.net"
	if p.endpoint != nil {
		at = strings.TrimSuffix(p.endpoint.String(), "/")
	}
	at += "/" + p.bucket
	opts := &container.ClientOptions{ClientOptions: policy.ClientOptions{
		Retry:     policy.RetryOptions{MaxRetries: clientTries - 1, RetryDelay: 200 * time.Millisecond, MaxRetryDelay: 2 * time.Second},
		Telemetry: policy.TelemetryOptions{Disabled: true},
	}}
	if o.Transport != nil {
		opts.Transport = &http.Client{Transport: o.Transport}
	}
	if sas := strings.TrimPrefix(o.Credentials["AZURE_STORAGE_SAS_TOKEN"], "?"); sas != "" {
		c, err := container.NewClientWithNoCredential(at+"?"+sas, opts)
		return &azureContainer{c}, err
	}
	key := o.Credentials["AZURE_STORAGE_KEY"]
	if key == "" {
		return nil, fmt.Errorf("no credentials: give AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN")
	}
	cred, err := container.NewSharedKeyCredential(p.account, key)
	if err != nil {
		return nil, fmt.Errorf("AZURE_STORAGE_KEY: %w", err)
	}
	c, err := container.NewClientWithSharedKeyCredential(at, cred, opts)
	return &azureContainer{c}, err
}

func (a *azureContainer) put(ctx context.Context, key string, data []byte, w writing) (string, error) {
	sum := md5.Sum(data) // against damage on the way; the vault has hashes of its own
	o := &blockblob.UploadOptions{
		Metadata:                map[string]*string{nonceKey: &w.nonce},
		TransactionalValidation: blob.TransferValidationTypeMD5(sum[:]),
		AccessConditions:        &blob.AccessConditions{ModifiedAccessConditions: &blob.ModifiedAccessConditions{}},
	}
	if w.absent {
		o.AccessConditions.ModifiedAccessConditions.IfNoneMatch = to.Ptr(azcore.ETagAny)
	}
	if w.etag != "" {
		o.AccessConditions.ModifiedAccessConditions.IfMatch = to.Ptr(azcore.ETag(w.etag))
	}
	if !w.until.IsZero() {
		o.ImmutabilityPolicyMode, o.ImmutabilityPolicyExpiryTime = to.Ptr(blob.ImmutabilityPolicySettingLocked), to.Ptr(w.until.UTC())
	}
	r, err := a.client.NewBlockBlobClient(key).Upload(ctx, body(data), o)
	if err != nil {
		return "", azureError(err)
	}
	if r.ETag == nil {
		return "", errors.New("the store has not said which version it wrote")
	}
	return string(*r.ETag), nil
}

func (a *azureContainer) get(ctx context.Context, key string, off, length int64) (io.ReadCloser, found, error) {
	r, err := a.client.NewBlobClient(key).DownloadStream(ctx, &blob.DownloadStreamOptions{Range: blob.HTTPRange{Offset: off, Count: length}})
	if err != nil {
		return nil, found{}, azureError(err)
	}
	f := found{}
	if r.ETag != nil {
		f.etag = string(*r.ETag)
	}
	for k, v := range r.Metadata {
		if strings.EqualFold(k, nonceKey) && v != nil {
			f.nonce = *v
		}
	}
	return r.Body, f, nil
}

// tail asks for the size first: Azure knows no ranges from the end.
func (a *azureContainer) tail(ctx context.Context, key string, n int64) (io.ReadCloser, found, error) {
	p, err := a.client.NewBlobClient(key).GetProperties(ctx, nil)
	if err != nil {
		return nil, found{}, azureError(err)
	}
	if p.ContentLength == nil || *p.ContentLength == 0 {
		return nil, found{}, errRange
	}
	off := max(0, *p.ContentLength-n)
	return a.get(ctx, key, off, *p.ContentLength-off)
}

func (a *azureContainer) list(ctx context.Context, prefix, after string, add func(Entry)) error {
	o := &container.ListBlobsFlatOptions{Prefix: &prefix}
	if after != "" {
		o.StartFrom = &after
	}
	for pages := a.client.NewListBlobsFlatPager(o); pages.More(); {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return azureError(err)
		}
		for _, b := range page.Segment.BlobItems {
			if b.Name != nil && b.Properties != nil && b.Properties.ContentLength != nil && b.Properties.LastModified != nil {
				add(Entry{Name: *b.Name, Size: *b.Properties.ContentLength, ModTime: *b.Properties.LastModified})
			}
		}
	}
	return nil
}

func (a *azureContainer) remove(ctx context.Context, key string) error {
	_, err := a.client.NewBlobClient(key).Delete(ctx, nil)
	return azureError(err)
}

// azureError translates an error.
func azureError(err error) error {
	var r *azcore.ResponseError
	if !errors.As(err, &r) {
		return err
	}
	switch {
	case bloberror.HasCode(err, bloberror.ContainerNotFound, bloberror.ContainerBeingDeleted, bloberror.ContainerDisabled):
		return fmt.Errorf("%w: %s", ErrGone, r.ErrorCode)
	case r.StatusCode == http.StatusForbidden, r.StatusCode == http.StatusUnauthorized:
		return fmt.Errorf("%w: %s", errDenied, r.ErrorCode)
	case bloberror.HasCode(err, bloberror.BlobNotFound):
		return ErrNotFound
	case r.StatusCode == http.StatusPreconditionFailed, bloberror.HasCode(err, bloberror.BlobAlreadyExists):
		return errCondition
	case r.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		return errRange
	}
	// The error of the client has the whole answer in many lines.
	return fmt.Errorf("azure: %d %s", r.StatusCode, r.ErrorCode)
}
