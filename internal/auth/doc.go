// Package auth decides who may speak to the server: tokens with roles, of
// which only hashes are kept, and a certificate authority of the server's own
// with the certificate it serves. It knows no routes; which role a route needs
// is package httpd's table.
package auth
