package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// ErrOptions says that a client cannot be made as asked.
var ErrOptions = errors.New("client options are not valid")

// maxAnswer bounds what the client reads of one answer, in bytes.
const maxAnswer = 64 << 20

// ClientOptions say which server a client speaks to and as whom.
type ClientOptions struct {
	BaseURL   string        // like https://dr.example.org:8443
	Token     string        // hf_…; empty for what needs none
	CA        []byte        // PEM of the authority to trust; empty: the system's
	Timeout   time.Duration // for an answer that is not a stream; 0: 60 s
	UserAgent string
}

// Client speaks to a server. Every method fails with a *Problem if the server
// answered so, and otherwise with what kept it from answering. Safe for
// concurrent use.
type Client struct {
	base *url.URL
	opts ClientOptions
	http *http.Client
}

// NewClient returns a client, without speaking to the server yet. It fails with
// ErrOptions.
func NewClient(opts ClientOptions) (*Client, error) {
	base, err := url.Parse(opts.BaseURL)
	if err != nil || base.Host == "" || base.Scheme != "https" && base.Scheme != "http" {
		return nil, fmt.Errorf("server %q: %w: want an address like https://host:8443", opts.BaseURL, ErrOptions)
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if len(opts.CA) > 0 {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(opts.CA) {
			return nil, fmt.Errorf("server %q: %w: the authority is not a PEM certificate", opts.BaseURL, ErrOptions)
		}
	}
	if opts.Timeout <= 0 {
		opts.Timeout = time.Minute
	}
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSClientConfig: config, ForceAttemptHTTP2: true,
		TLSHandshakeTimeout: 10 * time.Second, IdleConnTimeout: 30 * time.Second, MaxIdleConns: 4,
	}
	// A token must not follow a redirect to anywhere else.
	stay := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &Client{base: base, opts: opts, http: &http.Client{Transport: transport, CheckRedirect: stay}}, nil
}

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// BaseURL returns the address of the server.
func (c *Client) BaseURL() string { return c.opts.BaseURL }

// request makes a request; path segments are escaped by the caller.
func (c *Client) request(ctx context.Context, method, path string, body any) (*http.Request, error) {
	var reader io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("encode request: %w", err)
		}
		reader = bytes.NewReader(data)
	}
	target := strings.TrimSuffix(c.base.String(), "/") + path
	r, err := http.NewRequestWithContext(ctx, method, target, reader)
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	r.Header.Set("Accept", "application/json, application/problem+json")
	if c.opts.UserAgent != "" {
		r.Header.Set("User-Agent", c.opts.UserAgent)
	}
	if c.opts.Token != "" {
		r.Header.Set("Authorization", "Bearer "+c.opts.Token)
	}
	return r, nil
}

// call sends a request and decodes the answer into out, which may be nil.
func (c *Client) call(ctx context.Context, method, path string, body, out any) error {
	ctx, cancel := context.WithTimeout(ctx, c.opts.Timeout)
	defer cancel()
	r, err := c.request(ctx, method, path, body)
	if err != nil {
		return err
	}
	answer, err := c.http.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if err := refused(answer); err != nil {
		return err
	}
	if out == nil || answer.StatusCode == http.StatusNoContent {
		_, err := io.Copy(io.Discard, io.LimitReader(answer.Body, maxAnswer))
		return err
	}
	if raw, ok := out.(*[]byte); ok {
		*raw, err = io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
		return err
	}
	if err := json.NewDecoder(io.LimitReader(answer.Body, maxAnswer)).Decode(out); err != nil {
		return fmt.Errorf("decode the answer to %s %s: %w", method, path, err)
	}
	return nil
}

// refused returns the problem that an answer is, or nil if it is none. An
// error that is not in the server's form comes from something between.
func refused(answer *http.Response) error {
	if answer.StatusCode >= 200 && answer.StatusCode < 300 {
		return nil
	}
	p := new(Problem)
	data, err := io.ReadAll(io.LimitReader(answer.Body, 1<<20))
	if err == nil && strings.HasPrefix(answer.Header.Get("Content-Type"), "application/problem+json") && json.Unmarshal(data, p) == nil && p.Code != "" {
		return p
	}
	return &Problem{Status: answer.StatusCode, Title: http.StatusText(answer.StatusCode), Code: CodeUnavailable,
		Detail: "the answer is not a Holdfast server's: " + answer.Status,
		Hint:   "Check the server's address, and whether a proxy stands before it"}
}

// withQuery appends a query to a path.
func withQuery(path string, query url.Values) string {
	if len(query) == 0 {
		return path
	}
	return path + "?" + query.Encode()
}

func get[T any](ctx context.Context, c *Client, path string, query url.Values) (T, error) {
	var out T
	err := c.call(ctx, http.MethodGet, withQuery(path, query), nil, &out)
	return out, err
}

func post[T any](ctx context.Context, c *Client, path string, body any) (T, error) {
	var out T
	err := c.call(ctx, http.MethodPost, path, body, &out)
	return out, err
}

// segment escapes one segment of a path, so that a name cannot leave it.
func segment(name string) string {
	switch name {
	case "", ".", "..":
		// The server would clean these away; this way it refuses them.
		return strings.ReplaceAll(name, ".", "%2E") + "%20"
	}
	return url.PathEscape(name)
}

// Health returns how the server fares. It needs no token.
func (c *Client) Health(ctx context.Context) (ServerHealth, error) {
	return get[ServerHealth](ctx, c, "/v1/health", nil)
}

// ServerVersion returns what the server is.
func (c *Client) ServerVersion(ctx context.Context) (ServerVersion, error) {
	return get[ServerVersion](ctx, c, "/v1/version", nil)
}

// Sites returns all sites.
func (c *Client) Sites(ctx context.Context) (SiteList, error) {
	return get[SiteList](ctx, c, "/v1/sites", nil)
}

// Site returns one site by id or name.
func (c *Client) Site(ctx context.Context, site string) (Site, error) {
	return get[Site](ctx, c, "/v1/sites/"+segment(site), nil)
}

// AddSite adds a site.
func (c *Client) AddSite(ctx context.Context, add AddSite) (Site, error) {
	return post[Site](ctx, c, "/v1/sites", add)
}

// RemoveSite removes a site.
func (c *Client) RemoveSite(ctx context.Context, site string) error {
	return c.call(ctx, http.MethodDelete, "/v1/sites/"+segment(site), nil, nil)
}

// Machines returns the machines of a site, or of all if site is empty.
func (c *Client) Machines(ctx context.Context, site string) (MachineList, error) {
	query := url.Values{}
	if site != "" {
		query.Set("site", site)
	}
	return get[MachineList](ctx, c, "/v1/machines", query)
}

// Items returns all replicated items.
func (c *Client) Items(ctx context.Context) (ItemList, error) {
	return get[ItemList](ctx, c, "/v1/items", nil)
}

// Item returns one replicated item by id or name.
func (c *Client) Item(ctx context.Context, item string) (Item, error) {
	return get[Item](ctx, c, "/v1/items/"+segment(item), nil)
}

// Protect starts the job that protects a machine.
func (c *Client) Protect(ctx context.Context, protect Protect) (Job, error) {
	return post[Job](ctx, c, "/v1/items", protect)
}

// Points returns what an item can be recovered to.
func (c *Client) Points(ctx context.Context, item string) (Points, error) {
	return get[Points](ctx, c, "/v1/items/"+segment(item)+"/points", nil)
}

// Timelines returns the timelines of an item's history.
func (c *Client) Timelines(ctx context.Context, item string) (Timelines, error) {
	return get[Timelines](ctx, c, "/v1/items/"+segment(item)+"/timelines", nil)
}

// Failover starts the job that brings an item up at the other site.
func (c *Client) Failover(ctx context.Context, item string, failover Failover) (Job, error) {
	return post[Job](ctx, c, "/v1/items/"+segment(item)+"/failover", failover)
}

// Disable starts the job that ends the protection of an item.
func (c *Client) Disable(ctx context.Context, item string, disable Disable) (Job, error) {
	return post[Job](ctx, c, "/v1/items/"+segment(item)+"/disable", disable)
}

// Ask starts the job of an operation on an item, by the last part of its path:
// "commit", "reprotect" and so on. Body is of the operation's type in this
// package.
func (c *Client) Ask(ctx context.Context, item, operation string, body any) (Job, error) {
	return post[Job](ctx, c, "/v1/items/"+segment(item)+"/"+segment(operation), body)
}

// PinPoint keeps a recovery point of an item, or leaves it to the policy again.
func (c *Client) PinPoint(ctx context.Context, item string, pin PinPoint) (Point, error) {
	return post[Point](ctx, c, "/v1/items/"+segment(item)+"/pin", pin)
}

// ChangePolicy gives an item another policy.
func (c *Client) ChangePolicy(ctx context.Context, item string, change ChangePolicy) (Item, error) {
	return post[Item](ctx, c, "/v1/items/"+segment(item)+"/policy", change)
}

// HoldItem holds the history of an item, or releases it.
func (c *Client) HoldItem(ctx context.Context, item string, hold HoldItem) (Item, error) {
	return post[Item](ctx, c, "/v1/items/"+segment(item)+"/hold", hold)
}

// Screenshot returns the picture of a console that was kept with a job, as PNG.
func (c *Client) Screenshot(ctx context.Context, job string) ([]byte, error) {
	return get[[]byte](ctx, c, "/v1/jobs/"+segment(job)+"/screenshot", nil)
}

// CheckOperation says what an operation would do; nothing is done.
func (c *Client) CheckOperation(ctx context.Context, item string, check CheckOperation) (OperationCheck, error) {
	return post[OperationCheck](ctx, c, "/v1/items/"+segment(item)+"/check", check)
}

// Jobs returns jobs, newest first.
func (c *Client) Jobs(ctx context.Context, q JobQuery) (JobList, error) {
	query := url.Values{}
	if q.Item != "" {
		query.Set("item", q.Item)
	}
	if q.State != "" {
		query.Set("state", q.State)
	}
	if q.Limit != 0 {
		query.Set("limit", strconv.Itoa(q.Limit))
	}
	return get[JobList](ctx, c, "/v1/jobs", query)
}

// Job returns one job.
func (c *Client) Job(ctx context.Context, id string) (Job, error) {
	return get[Job](ctx, c, "/v1/jobs/"+segment(id), nil)
}

// CancelJob asks a job to stop.
func (c *Client) CancelJob(ctx context.Context, id string) (Job, error) {
	return post[Job](ctx, c, "/v1/jobs/"+segment(id)+"/cancel", nil)
}

// Vault returns the state of the vault.
func (c *Client) Vault(ctx context.Context) (Vault, error) {
	return get[Vault](ctx, c, "/v1/vault", nil)
}

// VerifyVault starts the job that reads the vault as a whole.
func (c *Client) VerifyVault(ctx context.Context, verify VerifyVault) (Job, error) {
	return post[Job](ctx, c, "/v1/vault/verify", verify)
}

// Tokens returns all tokens, without their secrets.
func (c *Client) Tokens(ctx context.Context) (TokenList, error) {
	return get[TokenList](ctx, c, "/v1/tokens", nil)
}

// CreateToken makes a token.
func (c *Client) CreateToken(ctx context.Context, create CreateToken) (CreatedToken, error) {
	return post[CreatedToken](ctx, c, "/v1/tokens", create)
}

// RevokeToken makes a token invalid, by its id or name.
func (c *Client) RevokeToken(ctx context.Context, token string) error {
	return c.call(ctx, http.MethodDelete, "/v1/tokens/"+segment(token), nil, nil)
}
