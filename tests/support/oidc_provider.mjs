// npm's oidc-provider as one organisation's sign-in, for tests: `node oidc_provider.mjs '{…}'`.
// It says {"port": N} on stdout when it listens. PUT /control sets who signs in next.
import http from 'node:http';
import { createRequire } from 'node:module';

const settings = JSON.parse(process.argv[2]);
const { Provider } = await import(createRequire(settings.modules + '/').resolve('oidc-provider'));
let person = { sub: 'nobody', email: 'nobody@example.org', email_verified: true };

const server = http.createServer();
await new Promise((resolve) => server.listen(settings.port ?? 0, '127.0.0.1', resolve));
const { port } = server.address();

const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients: [{
    client_id: settings.client_id,
    client_secret: settings.client_secret,
    redirect_uris: settings.redirect_uris,
    token_endpoint_auth_method: settings.auth_method ?? 'client_secret_basic',
    id_token_signed_response_alg: settings.alg ?? 'RS256',
  }],
  jwks: { keys: settings.keys },
  cookies: { keys: ['a key of the tests'] },
  pkce: { required: () => true },
  claims: { openid: ['sub'], email: ['email', 'email_verified'] },
  // Without it e-mail addresses stand in the answer of the userinfo endpoint only.
  conformIdTokenClaims: settings.conform ?? true,
  features: { devInteractions: { enabled: false } },
  interactions: { url: (_ctx, interaction) => `/interaction/${interaction.uid}` },
  findAccount: (_ctx, id) => ({ accountId: id, claims: () => ({ ...person, sub: id }) }),
  async loadExistingGrant(ctx) {
    const grant = new ctx.oidc.provider.Grant({
      clientId: ctx.oidc.client.clientId,
      accountId: ctx.oidc.session.accountId,
    });
    grant.addOIDCScope('openid email');
    await grant.save();
    return grant;
  },
});

const answer = provider.callback();
server.on('request', (request, response) => {
  if (request.url === '/control' && request.method === 'PUT') {
    let text = '';
    request.on('data', (chunk) => { text += chunk; });
    request.on('end', () => { person = JSON.parse(text); response.end('{}'); });
  } else if (request.url.startsWith('/interaction/')) {
    const result = settings.refuse ? { error: 'access_denied' } : { login: { accountId: person.sub } };
    provider.interactionFinished(request, response, result).catch((error) => {
      response.statusCode = 500;
      response.end(String(error));
    });
  } else {
    answer(request, response);
  }
});
console.log(JSON.stringify({ port }));
