package objstoretest

import (
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"github.com/holdfast-dr/holdfast/internal/objstore"
)

// Server is an object store that runs on this machine, with what opens it.
type Server struct {
	Endpoint    string
	Credentials map[string]string
	Pid         int
}

const (
	// s3Server and azurite are where .ci/prepare puts them, below the cache.
	s3Server = "holdfast/versitygw-v1.8.0/versitygw"
	azurite  = "holdfast/azurite-3.35.0/node_modules/azurite/dist/src/blob/main.js"
	// azureAccount and azureKey are Azurite's own, known to everyone.
	azureAccount = "devstoreaccount1"
	azureKey     = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)

// S3 starts an S3 server with the buckets. It ends with the test.
func S3(t *testing.T, buckets ...string) Server {
	t.Helper()
	dir := t.TempDir()
	root, versions := filepath.Join(dir, "root"), filepath.Join(dir, "versions")
	for _, d := range append([]string{root, versions}, joined(root, buckets)...) {
		must(t, os.MkdirAll(d, 0o700))
	}
	port := freePort(t)
	s := Server{Endpoint: "http://127.0.0.1:" + port, Credentials: map[string]string{"AWS_ACCESS_KEY_ID": "holdfast", "AWS_SECRET_ACCESS_KEY": "not-a-secret"}}
	s.Pid = start(t, port, cached(t, s3Server), "--port", "127.0.0.1:"+port, "--access", "holdfast", "--secret", "not-a-secret", "--quiet",
		"posix", "--versioning-dir", versions, root)
	return s
}

// Azure starts Azure's emulator. It ends with the test.
func Azure(t *testing.T) Server {
	t.Helper()
	port := freePort(t)
	pid := start(t, port, "node", cached(t, azurite), "--blobHost", "127.0.0.1", "--blobPort", port, "--location", t.TempDir(),
		"--silent", "--disableTelemetry", "--skipApiVersionCheck")
	return Server{Endpoint: "http://127.0.0.1:" + port + "/" + azureAccount, Credentials: map[string]string{"AZURE_STORAGE_KEY": azureKey}, Pid: pid}
}

func joined(root string, names []string) []string {
	out := make([]string, len(names))
	for i, n := range names {
		out[i] = filepath.Join(root, n)
	}
	return out
}

// cached returns a file of the cache, where "make test" puts what Debian has not.
func cached(t *testing.T, name string) string {
	t.Helper()
	dir, err := os.UserCacheDir()
	must(t, err)
	file := filepath.Join(dir, name)
	if _, err := os.Stat(file); err != nil {
		t.Skipf("%s is not there: run .ci/prepare", file)
	}
	return file
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	_, port, err := net.SplitHostPort(l.Addr().String())
	must(t, err)
	must(t, l.Close())
	return port
}

// start runs a server until the test ends, and waits until it answers.
func start(t *testing.T, port string, name string, args ...string) int {
	t.Helper()
	var said strings.Builder
	cmd := exec.Command(name, args...)
	cmd.Dir = t.TempDir()
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		<-ended
	})
	for range 600 {
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("%s ended: %v\n%s", name, err, said.String())
		case <-time.After(50 * time.Millisecond):
		}
		r, err := http.Get("http://127.0.0.1:" + port)
		if err == nil {
			must(t, r.Body.Close())
			return cmd.Process.Pid
		}
	}
	t.Fatalf("%s does not answer on port %s", name, port)
	return 0
}

// Container makes a container in the emulator, and returns its location.
func (s Server) Container(t *testing.T, name string) objstore.Location {
	t.Helper()
	cred, err := container.NewSharedKeyCredential(azureAccount, azureKey)
	must(t, err)
	c, err := container.NewClientWithSharedKeyCredential(s.Endpoint+"/"+name, cred, nil)
	must(t, err)
	_, err = c.Create(t.Context(), nil)
	must(t, err)
	return objstore.Location("azure://" + azureAccount + "/" + name + "/x?endpoint=" + url.QueryEscape(s.Endpoint))
}

// Bucket returns the location of a vault in a bucket of the S3 server.
func (s Server) Bucket(name, prefix string) objstore.Location {
	return objstore.Location("s3://" + name + "/" + prefix + "?endpoint=" + url.QueryEscape(s.Endpoint))
}
