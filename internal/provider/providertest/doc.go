// Package providertest has what tests of and around providers share: Run, the
// suite that every provider must pass; Fake, a site in memory whose calls are
// logged and whose failures and delays are scripted; and Serve, which offers a
// disk over NBD as recovery does. Only tests import it.
package providertest
