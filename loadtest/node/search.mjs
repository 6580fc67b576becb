// Asks a broker one question and prints the ranked passages.
//
//   npm ci && node search.mjs --index xquad "Who won Super Bowl 50?"
//
// Needs nothing of Shoal's but the folder `protos/`, which is read as it is, without generated code.

import path from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const HERE = path.dirname(fileURLToPath(import.meta.url));

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    endpoint: { type: "string", default: "127.0.0.1:7600" },
    index: { type: "string", default: "xquad" },
    "top-k": { type: "string", default: "5" },
    "timeout-s": { type: "string", default: "10" },
    protos: { type: "string", default: path.join(HERE, "..", "..", "protos") },
  },
});

function searchService(protos) {
  const definition = protoLoader.loadSync("shoal/v1/search.proto", {
    includeDirs: [protos],
    keepCase: true, // Fields keep the names that they have in the proto.
    longs: String, // A table version may be larger than a number of JavaScript is exact for.
    enums: String,
    defaults: true, // A field that was not sent reads as its default, not as undefined.
    oneofs: true,
  });
  return grpc.loadPackageDefinition(definition).shoal.v1.SearchService;
}

function search(client, request, timeoutS) {
  // The deadline is the budget of the whole search: the broker divides it over the stages, and
  // says in `coverage` what did not fit.
  const deadline = new Date(Date.now() + timeoutS * 1000);
  return new Promise((resolve, reject) => {
    client.Search(request, { deadline }, (error, response) =>
      error ? reject(error) : resolve(response),
    );
  });
}

function print({ hits, coverage }) {
  hits.forEach((hit, at) => {
    const { start, end } = hit.span ?? { start: 0, end: 0 };
    console.log(`${at + 1}. ${hit.score.toFixed(4)}  ${hit.document_id} [${start}, ${end})  ${hit.title}`);
    console.log(`   ${hit.text.replaceAll(/\s+/g, " ").slice(0, 160)}`);
  });
  if (hits.length === 0) console.log("no passages found");
  const { shards_searched: searched, shards_total: total, complete, cuts } = coverage;
  console.log(`${searched} of ${total} shards answered${complete ? "" : ": INCOMPLETE"}`);
  for (const cut of cuts) console.log(`   ${cut.stage}: ${cut.reason}: ${cut.message}`);
}

async function main() {
  const text = positionals.join(" ");
  if (!text) {
    console.error('what is the question? node search.mjs --index xquad "Who won Super Bowl 50?"');
    return 2;
  }
  const SearchService = searchService(options.protos);
  const client = new SearchService(options.endpoint, grpc.credentials.createInsecure(), {
    "grpc.enable_http_proxy": 0, // A broker is inside: never ask the environment's proxy for it.
  });
  try {
    const request = { index: options.index, text, top_k: Number(options["top-k"]) };
    print(await search(client, request, Number(options["timeout-s"])));
    return 0;
  } catch (error) {
    // `details` says what is wrong and what to do; the code is the gRPC status.
    console.error(`${grpc.status[error.code] ?? "ERROR"}: ${error.details ?? error.message}`);
    return 1;
  } finally {
    client.close();
  }
}

process.exitCode = await main();
